"""Methods: named choices of objectives, weighting, step size and retain budget.

A recipe is a function that returns a `Method`; its body is the paper's equation. Nothing here
trains. `METHODS` maps names to recipes for the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from expunge.objectives import NLL, UCE, Ascent, Objective
from expunge.schedules import Chunks
from expunge.step_sizes import GeN, StepSize
from expunge.stopping import RetainBudget
from expunge.weightings import Constant, Normalized, Weighting


@dataclass(frozen=True)
class Method:
    """What is minimised, how gradients are combined, and how far each step goes.

    Args:
        name: As the field writes it.
        objectives: At least one, with distinct names.
        weighting: Weights from the Gramian of the objectives' gradients.
        step_size: A rule that measures η; None leaves η to the Trainer's schedule.
        budget: How much retain loss may be lost, and what happens then; None checks nothing.
        schedule: An order of rows other than passes over whole data sets.

    Example:
        >>> Method("mine", (Ascent(NLL("forget")), NLL("retain")), Normalized()).sources
        ('forget', 'retain')
    """

    name: str
    objectives: tuple[Objective, ...]
    weighting: Weighting
    step_size: StepSize | None = None
    budget: RetainBudget | None = None
    schedule: Chunks | None = None

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`objectives` must be at least one, with distinct names; got {names}.")
        if isinstance(self.weighting, Constant) and len(self.weighting.weights) != len(names):
            raise ValueError(
                f"`weighting` must have one weight per objective ({len(names)}); "
                f"got {self.weighting.weights}."
            )
        if self.schedule and not {"forget", "retain"} <= {*self.sources}:
            raise ValueError(
                f"method {self.name!r} must read forget and retain records, since its schedule joins them; "
                f"its objectives read {self.sources}."
            )
        if (self.step_size or self.budget) and "retain" not in self.sources:
            raise ValueError(
                f"method {self.name!r} must read retain records, since its step size or budget measures "
                f"them; its objectives read {self.sources}. Add a retain objective, or leave both None."
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Data sets that the objectives read, in order: their own, and those paired with them."""
        read = [(o.source, o.needs.paired) for o in self.objectives]
        return tuple(dict.fromkeys(name for pair in read for name in pair if name is not None))


def grad_ascent() -> Method:
    r"""Gradient ascent on the forget set alone: minimise $-L_F$.

    The oldest baseline. It never stops by itself and destroys the model when run on; nothing here
    protects what should be kept.

    Reference:
        Jang et al. (2022), arXiv 2210.01504, equation 1.
    """
    return Method("grad-ascent", (Ascent(NLL("forget")),), Constant((1.0,)))


def guard(tolerance: float) -> RetainBudget:
    """A utility guard that leaves a method as published: it only ends a run that has lost too much."""
    return RetainBudget(tolerance=tolerance, every=10, rows=16, patience=1, repair=False)


def grad_diff(retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""Gradient difference: minimise $-L_F + \alpha L_R$ with constant weights.

    Args:
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Liu et al. (2022), arXiv 2203.12817; Maini et al. (2024), arXiv 2401.06121, section 4.
    """
    if retain_weight < 0:
        raise ValueError(f"`retain_weight` must be non-negative; got {retain_weight}.")
    objectives = (Ascent(NLL("forget")), NLL("retain"))
    return Method("grad-diff", objectives, Constant((1.0, retain_weight)), budget=guard(tolerance))


def ngdiff(tolerance: float = 0.02, every: int = 5, rows: int = 40) -> Method:
    r"""Normalised gradient difference of unlearning cross-entropy under a retain budget: the default.

    $d = \nabla L_R/\lVert \nabla L_R \rVert + \nabla L_{UCE}/\lVert \nabla L_{UCE} \rVert$. Every `every`
    steps the retain loss of `rows` fixed rows is measured in fp32; while it stands more than `tolerance`
    above its value at the start, steps repair (retain only) instead of forgetting.

    It departs from the paper (kept as `ngdiff_gen`) twice. Where the paper ascends the forget NLL, whose
    gradient vanishes on tokens known by heart and never fades on forgotten ones, this descends the
    unlearning cross-entropy, which does the opposite: a run ends with forget records as unlikely as
    records never seen, not far beyond. And the budget bounds the damage, not a Newton step on a retain
    loss that is at its noise.

    Args:
        tolerance: Retain loss that may be lost, nats per token, positive.
        every: Optimizer steps between measurements, at least 1.
        rows: Retain rows measured, at least 2.

    Reference:
        arXiv 2410.22086, section 3 (the direction); arXiv 2412.20412, section 3 (the forget loss).
    """
    return Method(
        "ngdiff",
        (UCE("forget"), NLL("retain")),
        Normalized(),
        budget=RetainBudget(tolerance=tolerance, every=every, rows=rows),
    )


def ngdiff_gen(every: int = 10, tolerance: float = 0.5) -> Method:
    r"""NGDiff as published: the normalised difference under the GeN learning rate.

    Args:
        every: Optimizer steps between measurements of η.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        arXiv 2410.22086, algorithm 1; arXiv 2407.02772.
    """
    objectives = (Ascent(NLL("forget")), NLL("retain"))
    return Method("ngdiff-gen", objectives, Normalized(), step_size=GeN(every=every), budget=guard(tolerance))


def sugd(chunk: int = 32, ratio: int = 7, passes: int = 7, retain_weight: float = 0.5) -> Method:
    r"""Sequential unlearning: gradient difference on chunks of forget rows joined with cyclic retain rows.

    Minimise $(-\sum_F \ell + \alpha \sum_R \ell) / (\lvert F \rvert + \lvert R \rvert)$ over a chunk's
    rows. The authors train the last 8 blocks (`train_last=8`) or LoRA (rank 16, alpha 64) at η = 1e-5, one
    row at a time; here ℓ is a mean over tokens, theirs one over rows.

    Args:
        chunk: Forget rows in a chunk.
        ratio: Retain rows per forget row.
        passes: Passes over a chunk before the next.
        retain_weight: α, non-negative.

    Reference:
        Premptis et al. (2025), arXiv 2503.02443 (AILS-NTUA, first of SemEval-2025 task 4).
    """
    weights = (1 / (1 + ratio), retain_weight * ratio / (1 + ratio))
    objectives = (Ascent(NLL("forget")), NLL("retain"))
    return Method("sugd", objectives, Constant(weights), schedule=Chunks(chunk, ratio, passes))


def fine_tune() -> Method:
    """Ordinary supervised fine-tuning: minimise the NLL of what is to be learned."""
    return Method("fine-tune", (NLL("retain"),), Constant((1.0,)))


METHODS: dict[str, Callable[..., Method]] = {
    "ngdiff": ngdiff,
    "ngdiff-gen": ngdiff_gen,
    "grad-diff": grad_diff,
    "grad-ascent": grad_ascent,
    "sugd": sugd,
}
