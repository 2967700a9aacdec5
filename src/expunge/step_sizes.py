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
        start: Loss of each row before the run's first step, for rules that account against it; None where
            the rows are not the fixed ones of the run.
    """

    minus: Float[Tensor, " r"]
    zero: Float[Tensor, " r"]
    plus: Float[Tensor, " r"]
    tokens: Float[Tensor, " r"]
    start: Float[Tensor, " r"] | None = None

    def over_ranks(self, gather: Callable[[Tensor], Tensor]) -> Line:
        """The same line over the rows of all ranks, so that every rank finds the same η."""
        return Line(
            minus=gather(self.minus),
            zero=gather(self.zero),
            plus=gather(self.plus),
            tokens=gather(self.tokens),
            start=None if self.start is None else gather(self.start),
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

    @property
    def rise(self) -> float:
        """L(0) less the loss at the start, in nats per token.

        Raises:
            ValueError: The line has no start.
        """
        if self.start is None:
            raise ValueError(
                "`start` must hold the rows' losses at the start of the run; got None. The rule accounts "
                "against them: measure the same rows once before the first step."
            )
        return weighted_mean(self.zero - self.start, self.tokens)


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
        _check(self.every, self.clip, self.significance)

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
        return _clipped(learning_rate, slope / curvature, self.clip, "newton")


@dataclass(frozen=True)
class WithinBudget:
    r"""The largest step whose predicted retain loss stays within a tolerance of its value at the start.

    On the parabola of `GeN`, $L(k) = L(0) - a k + b k^2 / 2$, the answer is $\eta k^* / n$ with $k^*$ the
    largest $k$ for which $L(k) \le L_{start} + \tau$; the $n$ steps until the next measurement share what
    room there is. With $r = L_{start} + \tau - L(0)$,
    $k^* = (a + \sqrt{a^2 + 2 b r}) / b$ where $b > 0$; where $b \le 0$ the parabola proves nothing far
    away, and its tangent is used: $k^* = -r / a$, without bound where $a \ge 0$. `GeN` looks for the
    lowest retain loss and stands still where that is reached; this rule moves as fast as utility allows.

    The slope is taken pessimistically, `significance` standard errors below its mean, so that noise can
    only shorten a step. It does not starve: slope and error both scale with η, so a smaller η brings no
    smaller answer.

    Over budget ($r \le 0$), where the step itself lowers the loss, it is sized for that: to the end of
    the room that it opens, else to the minimum. Where not, no step is within, and η shrinks to the lower
    clip at every measurement: what is still lost adds up to no more than a few steps lose. A method
    whose retain budget repairs (`repairs`) keeps η instead, for the steps that repair. Give that budget a
    smaller tolerance than the rule (half, by default): otherwise the rule creeps towards the edge in ever
    smaller steps, and nothing ever repairs.

    Args:
        tolerance: τ, nats per token above the start, positive.
        every: n, optimizer steps between measurements, at least 1.
        rows: Retain rows to measure, fixed for the run, at least 2.
        clip: Smallest and largest factor per measurement, around 1.
        significance: Standard errors, non-negative.
        repairs: Whether the method's retain budget repairs; `--set step_size=within-budget` sets it.

    Example:
        >>> two = torch.ones(2)
        >>> line = Line(minus=two * 0.75, zero=two, plus=two * 1.75, tokens=two, start=two)
        >>> WithinBudget(tolerance=0.75, every=1)(1e-4, line)
        Proposal(learning_rate=0.0001, decision='within budget')
    """

    tolerance: float = 0.04
    every: int = 5
    rows: int = 40
    clip: tuple[float, float] = (0.5, 2.0)
    significance: float = 2.0
    repairs: bool = False

    def __post_init__(self) -> None:
        _check(self.every, self.clip, self.significance)
        if not 0 < self.tolerance < math.inf or self.rows < 2:
            raise ValueError(
                "`tolerance` must be positive (nats per token) and `rows` at least 2; "
                f"got {self.tolerance}, {self.rows}."
            )

    def __call__(self, learning_rate: float, line: Line) -> Proposal:
        room = self.tolerance - line.rise
        doubt = self.significance * line.slope_error if self.significance else 0.0
        if math.isinf(doubt):
            return Proposal(learning_rate, "keep: slope not resolved")
        slope, curvature = line.slope - doubt, line.curvature
        if not math.isfinite(room + slope + curvature):
            return Proposal(learning_rate * self.clip[0], "shrink: loss not finite")
        if room <= 0 and slope <= 0:
            factor, what = (1.0, "keep") if self.repairs else (self.clip[0], "shrink")
            return Proposal(learning_rate * factor, f"{what}: over budget")
        factor = largest_within(slope, curvature, room) / self.every
        return _clipped(learning_rate, factor, self.clip, "within budget" if room > 0 else "repair")


STEP_SIZES: dict[str, Callable[[], StepSize] | None] = {
    "schedule": None,
    "gen": GeN,
    "within-budget": WithinBudget,
}
"""Rules by name; a schedule is the Trainer's."""


def largest_within(slope: float, curvature: float, room: float) -> float:
    """The largest k for which −slope·k + curvature·k²/2 <= room, as far as it can be trusted.

    Args:
        slope: Fall at k = 0.
        curvature: Of the parabola; where it is not positive the tangent is used.
        room: Where it is negative the slope must be positive; if no k is enough, the k of the minimum.
    """
    if curvature <= 0:
        return math.inf if slope >= 0 else room / -slope
    root = math.sqrt(max(slope * slope + 2 * curvature * room, 0.0))
    if slope >= 0:
        return (slope + root) / curvature
    return 2 * room / (root - slope)  # the same root, without cancellation


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


def _clipped(learning_rate: float, factor: float, clip: tuple[float, float], decision: str) -> Proposal:
    clipped = min(max(factor, clip[0]), clip[1])
    return Proposal(learning_rate * clipped, decision if clipped == factor else f"{decision}, clipped")


def _check(every: int, clip: tuple[float, float], significance: float) -> None:
    if every < 1:
        raise ValueError(f"`every` must be at least 1; got {every}.")
    if not 0 < clip[0] <= 1 <= clip[1]:
        raise ValueError(f"`clip` must satisfy 0 < low <= 1 <= high; got {clip}.")
    if not 0 <= significance < math.inf:
        raise ValueError(f"`significance` must be non-negative and finite; got {significance}.")
