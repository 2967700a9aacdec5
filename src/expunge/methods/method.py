"""What a method is: objectives, weighting, step size and retain budget."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.objectives import Objective
from expunge.schedules import Chunks
from expunge.step_sizes import StepSize
from expunge.stopping import RetainBudget
from expunge.weightings import Constant, DualAscent, Weighting


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
        >>> from expunge.objectives import NLL, Ascent
        >>> from expunge.weightings import Normalized
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
        if isinstance(self.weighting, Constant | DualAscent) and len(self.weighting.weights) != len(names):
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


def guard(tolerance: float) -> RetainBudget:
    """A utility guard that leaves a method as published: it only ends a run that has lost too much."""
    return RetainBudget(tolerance=tolerance, every=10, rows=16, patience=1, repair=False)


def weighted(
    name: str, forget: Objective, retain: Objective, weights: tuple[float, float], tolerance: float
) -> Method:
    """One forget and one retain objective under constant weights, as published, with a guard.

    Args:
        name: Of the method.
        forget: What forgets.
        retain: What keeps; it reads retain records.
        weights: Of the two, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.
    """
    if min(weights) < 0:
        raise ValueError(f"`forget_weight` and `retain_weight` must be non-negative; got {weights}.")
    return Method(name, (forget, retain), Constant(weights), budget=guard(tolerance))
