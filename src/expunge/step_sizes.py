r"""Step sizes: how far to go along the direction that the weighting and the optimizer chose.

Let θ − kηu be the point that the optimizer reaches at learning rate kη. A rule reads the *retain*
loss of the same rows at k = −1, 0, +1 and answers the next η. Rules are pure functions of these
numbers: measuring them without disturbing the run is the engine's part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Line:
    """Retain losses along the update, one per row and point (nats per token, float64).

    Args:
        minus: Loss of each row at θ + ηu.
        zero: Loss at θ.
        plus: Loss at θ − ηu.
        tokens: Label tokens of each row: a row counts as much as it has tokens, as in training.
    """

    minus: Float[Tensor, " r"]
    zero: Float[Tensor, " r"]
    plus: Float[Tensor, " r"]
    tokens: Float[Tensor, " r"]

    def over_ranks(self, gather: Callable[[Tensor], Tensor]) -> Line:
        """The same line over the rows of all ranks, so that every rank finds the same η."""
        return Line(
            minus=gather(self.minus),
            zero=gather(self.zero),
            plus=gather(self.plus),
            tokens=gather(self.tokens),
        )

    @property
    def slope(self) -> float:
        """A = (L(−1) − L(+1)) / 2, the fall per step of η; positive when the update helps retain."""
        return weighted_mean((self.minus - self.plus) / 2, self.tokens)

    @property
    def slope_error(self) -> float:
        """Standard error of the slope over rows, from paired differences."""
        return standard_error((self.minus - self.plus) / 2, self.tokens)

    @property
    def curvature(self) -> float:
        """B = L(+1) + L(−1) − 2 L(0)."""
        return weighted_mean(self.plus + self.minus - 2 * self.zero, self.tokens)


class Proposal(NamedTuple):
    """The next learning rate, and the reason in a few words."""

    learning_rate: float
    decision: str


@runtime_checkable
class StepSize(Protocol):
    """A rule that sets the learning rate from measurements."""

    @property
    def every(self) -> int:
        """Optimizer steps between measurements."""
        ...

    @property
    def rows(self) -> int | None:
        """Retain rows to measure, fixed for the run; None measures the step's own retain batch."""
        ...

    def __call__(self, learning_rate: float, line: Line) -> Proposal:
        """The learning rate after a measurement at the current one."""
        ...


@dataclass(frozen=True)
class GeN:
    r"""The generalised Newton rule: the minimum of the parabola through three retain losses.

    $\eta^* = \eta\, a / b$ where $a > 0$ and $b > 0$, kept within `clip` times the old η. Where the
    parabola has no minimum ahead: $a \le 0$ shrinks to the lower clip, $b \le 0$ grows to the upper.
    With `significance` > 0 a slope below that many standard errors changes nothing.

    Args:
        every: Optimizer steps between measurements, at least 1 (paper: 10).
        clip: Smallest and largest factor per measurement, around 1.
        significance: 0 is the published rule.
        rows: Retain rows to measure; None (paper) takes the step's own retain batch.

    Example:
        >>> one = torch.ones(1)
        >>> line = Line(minus=one * 1.5, zero=one * 1.0, plus=one * 0.75, tokens=one)
        >>> GeN()(1e-4, line)
        Proposal(learning_rate=0.00015000000000000001, decision='newton')

    Reference:
        Bu and Xu (2024), arXiv 2407.02772, equation 5 and algorithm 1.
    """

    every: int = 10
    clip: tuple[float, float] = (0.5, 2.0)
    significance: float = 0.0
    rows: int | None = None

    def __post_init__(self) -> None:
        _check_every(self.every)
        if not 0 < self.clip[0] <= 1 <= self.clip[1]:
            raise ValueError(f"`clip` must satisfy 0 < low <= 1 <= high; got {self.clip}.")

    def __call__(self, learning_rate: float, line: Line) -> Proposal:
        slope, curvature = line.slope, line.curvature
        if not math.isfinite(slope + curvature):
            return Proposal(learning_rate * self.clip[0], "shrink: loss not finite")
        if abs(slope) < self.significance * line.slope_error:
            return Proposal(learning_rate, "keep: slope not resolved")
        if slope <= 0:
            return Proposal(learning_rate * self.clip[0], "shrink: a <= 0")
        if curvature <= 0:
            return Proposal(learning_rate * self.clip[1], "grow: b <= 0")
        factor = slope / curvature
        clipped = min(max(factor, self.clip[0]), self.clip[1])
        return Proposal(learning_rate * clipped, "newton" if clipped == factor else "newton, clipped")


def weighted_mean(values: Float[Tensor, " r"], tokens: Float[Tensor, " r"]) -> float:
    """Mean over tokens of per-row means."""
    return float((values.double() * tokens).sum() / tokens.sum())


def standard_error(values: Float[Tensor, " r"], tokens: Float[Tensor, " r"]) -> float:
    """Standard error of `weighted_mean` (ratio estimator over rows); infinite for a single row."""
    count = len(values)
    if count < 2:
        return math.inf
    residuals = (values.double() - weighted_mean(values, tokens)) * tokens
    return float(residuals.square().sum().sqrt() / tokens.sum() * math.sqrt(count / (count - 1)))


def _check_every(every: int) -> None:
    if every < 1:
        raise ValueError(f"`every` must be at least 1; got {every}.")
