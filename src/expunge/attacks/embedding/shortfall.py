"""How far a point is from fooling: what attacks that look for the nearest fooling point drive to 0."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from expunge.attacks.embedding.losses import Objective


@dataclass(frozen=True, slots=True)
class Shortfall:
    r"""$\max(\kappa - f(x), 0)$ of an objective $f$ that is above 0 exactly where the attack has succeeded.

    Attributes:
        gains: The objective, for instance the margin.
        confidence: $\kappa \ge 0$, by how much it must succeed, in units of the objective.
    """

    gains: Objective
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.confidence < 0:
            raise ValueError(f"`confidence` must not be negative; got {self.confidence}. 0 asks for none.")

    def __call__(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """What is missing, [b], and whether the point, [b, ...], counts as successful, [b]."""
        value = self.gains(point)
        return (self.confidence - value).clamp_min(0), (value > 0) & (value >= self.confidence)
