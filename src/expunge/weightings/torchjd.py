"""The Gramian weightings of TorchJD, as they stand: their randomness repeatable, their memory resumable."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchjd import aggregation
from torchjd.aggregation import Weighting as TorchJDWeighting

from expunge.errors import UsageError
from expunge.weightings.contract import check_state

_EXTRA = re.compile(r"(?<=torchjd\[)\w+(?=\])")
"""In TorchJD's hint; before 23.3 pip knows an extra by its name with hyphens only, and leaves others out."""


@dataclass(repr=False)
class TorchJD:
    """A Gramian weighting of TorchJD, as it stands.

    Random choices (`RandomWeighting`, the orders of `PCGradWeighting` and `GradVacWeighting`) come from
    the seeds and the number of calls alone: every rank makes the same ones, a resumed run goes on with the
    next ones, and the run's own random numbers stay untouched. What a weighting remembers between calls
    belongs to the largest number of objectives so far; in a step with fewer (repair) a fresh one answers.
    Where the weighting is not for so few (Krum wants three), all of them count alike there, 1/m each.

    Args:
        weighting: For example `torchjd.aggregation.UPGradWeighting()`.
        seed: Of its random choices.
        run_seed: Of the run, joined with `seed`: `--set weighting=NAME` brings it along. The name leaves it
            out, since runs over several seeds differ in nothing else.

    Example:
        >>> TorchJD(aggregation.MGDAWeighting())(torch.tensor([[1., 0.], [0., 3.]]), torch.zeros(2))
        tensor([0.7500, 0.2500], dtype=torch.float64)

    Reference:
        https://torchjd.org; Quinton and Rey (2024), arXiv 2406.16232.
    """

    weighting: TorchJDWeighting[Any]
    seed: int = 0
    run_seed: int = 0
    _fresh: TorchJDWeighting[Any] = field(init=False, repr=False, compare=False)
    _calls: int = field(default=0, init=False, repr=False, compare=False)
    _count: int = field(default=0, init=False, repr=False, compare=False)

    needs_gramian = True

    def __post_init__(self) -> None:
        self._fresh = deepcopy(self.weighting)

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        count = len(gramian)
        if count > self._count:
            self.weighting, self._count = deepcopy(self._fresh), count
        weighting = self.weighting if count == self._count else deepcopy(self._fresh)
        with self._lots():
            try:
                weights = weighting(gramian.double()).double()
            except ValueError:
                if self._refusal(count) is None:
                    raise
                weights = torch.full((count,), 1 / count, dtype=torch.float64)
        self._calls += 1
        return weights

    def check(self, count: int) -> None:
        """Refuse a number of objectives that the weighting is not for.

        Raises:
            ValueError: Some need at least two, or three.
        """
        if refusal := self._refusal(count):
            raise ValueError(
                f"`weighting` must be for as many objectives as there are ({count}); {self!r} says: {refusal}"
            )

    def _refusal(self, count: int) -> ValueError | None:
        """What the weighting says of a number of objectives that it is not for."""
        try:
            with self._lots():
                deepcopy(self._fresh)(torch.eye(count, dtype=torch.float64))
        except ValueError as error:
            return error
        return None

    def _lots(self) -> AbstractContextManager[None]:
        """The random numbers of the next call; runs of other seeds begin at far places of one sequence."""
        mixed = np.random.SeedSequence(self.run_seed % 2**32).generate_state(1)[0]
        return _random_numbers((int(mixed) if self.run_seed else 0) + self.seed + self._calls)

    def __repr__(self) -> str:
        """With all settings: the record of a run, and the identity of a checkpoint, rest on it."""
        return f"TorchJD({_described(self.weighting)}, seed={self.seed})"

    def reset(self) -> None:
        self.weighting = deepcopy(self._fresh)
        self._calls = self._count = 0

    def observe(self, losses: Float[Tensor, " m"]) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, float]:
        numbers = {
            f"{name}[{i}]": value
            for name, (_, _, tensor) in self._memory().items()
            for i, value in enumerate(tensor.flatten().tolist())
        }
        return {"calls": float(self._calls), "objectives": float(self._count)} | numbers

    def restore(self, state: Mapping[str, float]) -> None:
        self.reset()
        self._count = int(state.get("objectives", 0))
        if self._count and set(state) - {"calls", "objectives"}:
            self.weighting(torch.eye(self._count, dtype=torch.float64))  # makes room for what is remembered
        check_state(state, set(self.state()))
        self._calls = int(state["calls"])
        for name, (owner, attribute, room) in self._memory().items():
            numbers = [state[f"{name}[{i}]"] for i in range(room.numel())]
            setattr(owner, attribute, torch.tensor(numbers, dtype=room.dtype).reshape(room.shape))

    def _memory(self) -> dict[str, tuple[nn.Module, str, Tensor]]:
        """Name -> where it is kept, and the tensor: whatever was None in a fresh weighting and is one now."""
        found = {}
        for (path, module), fresh in zip(self.weighting.named_modules(), self._fresh.modules(), strict=True):
            before = vars(fresh) | fresh._buffers
            for name, value in (vars(module) | module._buffers).items():
                if isinstance(value, Tensor) and before.get(name, value) is None:
                    found[f"{path}.{name}".strip("._")] = (module, name, value)
        return found


@dataclass
class NashMTL:
    """Nash bargaining (TorchJD's `NashMTL`), which only needs a square root of the Gramian.

    Needs the optional dependencies of `torchjd[nash-mtl]`. Starts from the last answer, so it is stateful.

    Args:
        max_norm: Largest norm of the direction; 0 leaves it as it is.
        update_every: Calls that share one solution, at least 1.
        iterations: Of the inner solver.

    Reference:
        Navon et al. (2022), arXiv 2202.01017, algorithm 1.
    """

    max_norm: float = 1.0
    update_every: int = 1
    iterations: int = 20
    _solver: Any = field(default=None, init=False, repr=False, compare=False)

    needs_gramian = True

    def __post_init__(self) -> None:
        with _optional_dependencies():
            self._build(2)  # refuses bad arguments at once

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        if not gramian.any():
            return torch.zeros(len(gramian), dtype=torch.float64)
        if len(gramian) == 1:  # nobody to bargain with, and more than the solver can state
            return self._alone(gramian.double()[0])
        if self._solver is None:
            self._solver = self._build(len(gramian))
        same = len(gramian) == self._solver.n_tasks
        solver = self._solver if same else self._build(len(gramian))
        values, vectors = torch.linalg.eigh(gramian.double())
        with _unheard():
            weights: Tensor = solver(vectors * values.clamp(min=0).sqrt())
        return weights.double()

    def _alone(self, square: Float[Tensor, " 1"]) -> Float[Tensor, " 1"]:
        """Weight 1, less where that exceeds the largest norm."""
        norm = square.clamp(min=0).sqrt()
        return torch.where((norm > self.max_norm) & (self.max_norm > 0), self.max_norm / norm, 1.0)

    def _build(self, count: int) -> Any:
        aggregator = aggregation.NashMTL(
            n_tasks=count,
            max_norm=self.max_norm,
            update_weights_every=self.update_every,
            optim_niter=self.iterations,
        )
        return aggregator.weighting

    def reset(self) -> None:
        self._solver = None

    def observe(self, losses: Float[Tensor, " m"]) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, float]:
        if self._solver is None:
            return {}
        answer = {f"answer[{i}]": float(value) for i, value in enumerate(self._solver.prvs_alpha)}
        return {"calls": float(self._solver.step)} | answer

    def restore(self, state: Mapping[str, float]) -> None:
        self.reset()
        if not state:
            return
        count = len(state) - 1
        check_state(state, {"calls", *(f"answer[{i}]" for i in range(count))})
        self(torch.eye(count, dtype=torch.float64), torch.zeros(count))  # states the problem to be solved
        answer = torch.tensor([state[f"answer[{i}]"] for i in range(count)], dtype=torch.float64)
        self._solver.prvs_alpha, self._solver.step = answer.numpy(), state["calls"]


def _described(weighting: nn.Module) -> str:
    """Name and settings, of wrapped weightings too; TorchJD's own text leaves some settings out."""
    kind = type(weighting)
    settings = [f"{n}={getattr(weighting, n)!r}" for n, v in vars(kind).items() if isinstance(v, property)]
    inner = [_described(child) for child in weighting.children() if isinstance(child, TorchJDWeighting)]
    return f"{kind.__name__}({', '.join(inner + settings)})"


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """CPU random numbers of their own; those of the run continue afterwards as if nothing had happened."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextmanager
def _unheard() -> Iterator[None]:
    """Without what a solver says on its way: how its problem is stated, quotients where none is solved."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", message="You are solving a parameterized problem that is not DPP")
        yield


@contextmanager
def _optional_dependencies() -> Iterator[None]:
    """Some weightings need a solver that TorchJD leaves to its extras: the user's environment to mend."""
    try:
        yield
    except ImportError as missing:
        raise UsageError(_EXTRA.sub(lambda name: name[0].replace("_", "-"), str(missing))) from missing


def _constructor(kind: str, line: str, **defaults: Any) -> Callable[..., TorchJD]:
    def construct(*, seed: int = 0, **settings: Any) -> TorchJD:
        with _optional_dependencies():
            return TorchJD(getattr(aggregation, kind)(**(defaults | settings)), seed)

    construct.__name__, construct.__doc__ = kind, f"{line} (TorchJD's `{kind}`; same settings)."
    return construct


def _cr_mogm(weighting: TorchJDWeighting[Any] | None = None, **settings: Any) -> TorchJD:
    """Another weighting of TorchJD (MGDA by default), smoothed over steps (TorchJD's `CRMOGMWeighting`)."""
    inner = weighting if weighting is not None else aggregation.MGDAWeighting()
    return TorchJD(aggregation.CRMOGMWeighting(inner, **settings))


_KNOWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "aligned-mtl": ("AlignedMTLWeighting", "Principal components of the gradients at equal length", {}),
    "cagrad": ("CAGradWeighting", "Worst objective's best direction near the mean gradient", {"c": 0.5}),
    "dualproj": ("DualProjWeighting", "Mean gradient, projected onto the dual cone", {}),
    "fairgrad": ("FairGradWeighting", "α-fair share of progress", {"alpha": 2.0}),
    "gradvac": ("GradVacWeighting", "Gradients turned towards their usual angles", {}),
    "imtl-g": ("IMTLGWeighting", "Equal projections onto all gradients", {}),
    "krum": (
        "KrumWeighting",
        "The gradient nearest to its neighbours; at least 3 objectives",
        {"n_byzantine": 0},
    ),
    "mean": ("MeanWeighting", "1/m for every objective", {}),
    "mgda": ("MGDAWeighting", "Shortest convex combination, by Frank–Wolfe", {}),
    "pcd": ("PCDWeighting", "First objective, with a share of progress for the others", {}),
    "pcgrad": ("PCGradWeighting", "Gradients with what conflicts projected out, in random order", {}),
    "random": ("RandomWeighting", "Random weights on the simplex", {}),
    "sum": ("SumWeighting", "1 for every objective", {}),
    "upgrad": ("UPGradWeighting", "Every gradient projected onto the dual cone, then averaged", {}),
}

TORCHJD: dict[str, Callable[..., TorchJD | NashMTL]] = {
    **{
        name: _constructor(kind, line, **defaults)
        for name, (kind, line, defaults) in _KNOWN.items()
        if kind in aggregation.__all__  # older releases lack some
    },
    "cr-mogm": _cr_mogm,
    "nash-mtl": NashMTL,
}
"""Name -> constructor for every weighting of the installed TorchJD that a Gramian is enough for.

Left out: `MoDoWeighting` and `SDMGradWeighting` (they want the product of the Jacobians of two independent
batches, and lose their guarantee on a Gramian), `ExcessMTLWeighting` (squares of single coordinates),
ConFIG, GradDrop and TrimmedMean (no weighting, the whole Jacobian). TorchJD's constant one is `Constant`.
With TorchJD 0.18 `upgrad` and `dualproj` need `torchjd[quadprog-projector]`, `cagrad` needs
`torchjd[cagrad]`, `nash-mtl` needs `torchjd[nash-mtl]`; without them the constructor says so.
"""
