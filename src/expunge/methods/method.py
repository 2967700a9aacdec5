"""What a method is: objectives, weighting, step size, retain budget, sharpness, and how it is merged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expunge.derived import is_forget
from expunge.merging import Merge
from expunge.objectives import Objective
from expunge.schedules import Chunks
from expunge.step_sizes import StepSize, WithinBudget
from expunge.stopping import RetainBudget
from expunge.weightings import BiLevel, Constant, DualAscent, Stateful, TorchJD, Weighting


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
        merge: The model is not what training ends at but made from what it changed; budget and forget check
            then look at the merged model alone.
        relative_sharpness: ρ of sharpness-aware forget gradients (`defences.sharpness`) as a share of the
            norm of all weights of the model, where settings name no ρ.
        leaks_first: While the forget records are on average as unlikely as their control but some are
            reproduced all the same, forget rows are drawn from these alone. A look at all rows names them; it
            takes a holdout, given or synthetic.

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
    merge: Merge | None = None
    relative_sharpness: float = 0.0
    leaks_first: bool = False

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`objectives` must be at least one, with distinct names; got {names}.")
        for weighting in (self.weighting, *(self.merge.further if self.merge else ())):
            if isinstance(weighting, Constant | DualAscent) and len(weighting.weights) != len(names):
                raise ValueError(
                    f"`weighting` must have one weight per objective ({len(names)}); got {weighting.weights}."
                )
            if isinstance(weighting, BiLevel) and weighting.count != len(names):
                raise ValueError(
                    f"`weighting` must be for as many objectives as there are ({len(names)}); got "
                    f"{weighting}. Give it another `count`, or add objectives."
                )
            if isinstance(weighting, TorchJD):
                weighting.check(len(names))
        if not 0 <= self.relative_sharpness < math.inf:
            raise ValueError(
                f"`relative_sharpness` must be at least 0; got {self.relative_sharpness}. 0 leaves it out."
            )
        if self.schedule and not {"forget", "retain"} <= {*self.sources}:
            raise ValueError(
                f"method {self.name!r} must read forget and retain records, since its schedule joins them; "
                f"its objectives read {self.sources}."
            )
        rule, repair = self.step_size, self.budget is not None and self.budget.repair
        if isinstance(rule, WithinBudget) and rule.repairs and not repair:
            raise ValueError(
                f"method {self.name!r} must have a retain budget that repairs, since its step size relies on "
                f"it (`repairs`); got {self.budget}. Give one, or `repairs=False`."
            )
        if self.merge:
            self._check_merge(self.merge)
        elif (self.step_size or self.budget) and "retain" not in self.sources:
            raise ValueError(
                f"method {self.name!r} must read retain records, since its step size or budget measures "
                f"them; its objectives read {self.sources}. Add a retain objective, or leave both None."
            )

    def _check_merge(self, merge: Merge) -> None:
        if self.leaks_first:
            raise ValueError(
                f"method {self.name!r} must draw from all forget records to be merged (nothing is looked at "
                "before); got `leaks_first=True`. Leave it out."
            )
        if self.step_size is not None or isinstance(self.weighting, Stateful):
            raise ValueError(
                f"method {self.name!r} must have no step size rule and no weighting with a memory to be "
                "merged (each training starts afresh). Leave η to the schedule, and choose another weighting."
            )
        if self.budget is None and len(merge.coefficients) > 1:
            raise ValueError(
                f"method {self.name!r} must have a budget to choose among {len(merge.coefficients)} "
                "coefficients; it has none. Give one, or a single coefficient."
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Data sets that are read, in order: the objectives' own, those paired with them, the budget's."""
        read = [*((o.source, o.needs.paired) for o in self.objectives)]
        if self.merge and self.budget:
            read.append(("retain", None))
        return tuple(dict.fromkeys(name for pair in read for name in pair if name is not None))

    @property
    def second_models(self) -> tuple[str, ...]:
        """Folders or names of the models that objectives ask beside the run's own."""
        found = (o.needs.generic.model for o in self.objectives if o.needs.generic and o.needs.generic.model)
        return tuple(dict.fromkeys(found))

    @property
    def forgets(self) -> bool:
        """Whether forget records are read, or what is derived from them."""
        return any(map(is_forget, self.sources))


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
