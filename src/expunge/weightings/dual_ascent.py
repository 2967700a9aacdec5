"""Weights that rise while a loss is above its bound (PDU)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.weightings.contract import check_state


@dataclass
class DualAscent:
    r"""Dual ascent on the Lagrangian of a constrained problem (PDU).

    Minimise the objectives without a bound subject to $L_i \le \varepsilon_i$ for the others. The weight of
    a bounded objective is its dual variable, moved once per optimizer step by
    $\lambda_i \leftarrow \max(0, \lambda_i + \rho\,(L_i - \varepsilon_i))$ from the losses of that whole
    step: means over micro-batches and ranks, never of a single micro-batch. The first `warmup` steps use
    the initial weights.

    The weights do not depend on the current step, so one fused backward pass is enough.

    Args:
        weights: Initial weight of every objective, finite and, where bounded, non-negative.
        bounds: ε_i, or None for an objective without a bound; at least one is bounded.
        rate: ρ, positive.
        warmup: Steps before the first move, at least 0.

    Example:
        >>> weighting = DualAscent(weights=(1.0, 100.0), bounds=(None, 0.3), rate=5.0)
        >>> weighting.observe(torch.tensor([7.0, 0.5]))
        >>> weighting(torch.zeros(2, 2), torch.zeros(2))
        tensor([  1., 101.], dtype=torch.float64)
        >>> weighting.state()
        {'steps': 1.0, 'dual.1': 101.0}

    Reference:
        Entesari et al. (2025), arXiv 2506.05314; the move as in open-unlearning's `PDU`, which makes it
        once per micro-batch and rank.
    """

    weights: tuple[float, ...]
    bounds: tuple[float | None, ...]
    rate: float = 1.0
    warmup: int = 0
    _steps: int = field(default=0, init=False, repr=False, compare=False)
    _duals: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    needs_gramian = False

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.bounds) or all(bound is None for bound in self.bounds):
            raise ValueError(
                "`bounds` must have one entry per weight, at least one of them a number; "
                f"got weights={self.weights}, bounds={self.bounds}."
            )
        for weight, bound in zip(self.weights, self.bounds, strict=True):
            lowest = -math.inf if bound is None else 0.0
            if not (math.isfinite(weight) and weight >= lowest and (bound is None or math.isfinite(bound))):
                raise ValueError(
                    "`weights` must be finite, and non-negative where bounded by a finite number; "
                    f"got weights={self.weights}, bounds={self.bounds}."
                )
        if not 0 < self.rate < math.inf or self.warmup < 0:
            raise ValueError(
                f"`rate` must be positive and `warmup` at least 0; got {self.rate}, {self.warmup}."
            )
        self.reset()

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        if len(self.weights) != len(losses):
            raise ValueError(
                f"`weights` must have one entry per objective ({len(losses)}); got {self.weights}."
            )
        current = [self._duals.get(i, weight) for i, weight in enumerate(self.weights)]
        return torch.tensor(current, dtype=torch.float64)

    def reset(self) -> None:
        self._steps = 0
        self._duals = {i: self.weights[i] for i, bound in enumerate(self.bounds) if bound is not None}

    def observe(self, losses: Float[Tensor, " m"]) -> None:
        """Move the dual variables; losses that are not finite move nothing."""
        self._steps += 1
        if self._steps <= self.warmup or not losses.isfinite().all():
            return
        for i, dual in self._duals.items():
            excess = float(losses[i]) - (self.bounds[i] or 0.0)
            self._duals[i] = max(0.0, dual + self.rate * excess)

    def state(self) -> dict[str, float]:
        return {"steps": float(self._steps)} | {f"dual.{i}": dual for i, dual in self._duals.items()}

    def restore(self, state: Mapping[str, float]) -> None:
        check_state(state, {"steps", *(f"dual.{i}" for i in self._duals)})
        self._steps = int(state["steps"])
        self._duals = {i: state[f"dual.{i}"] for i in self._duals}
