"""Bounds that every coordinate of an input keeps to: those of a pixel, or none for an embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_WITHIN = 1 - 1e-6
"""Share of the box in which points are mapped to finite ones."""


@dataclass(frozen=True, slots=True)
class Box:
    """Least and greatest value of a coordinate.

    Attributes:
        low: Below `high`; minus infinity bounds nothing.
        high: Above `low`; infinity bounds nothing.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`; got {self.low} and {self.high}. Swap them?")

    def clip(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The nearest point of the box."""
        return x.clamp(self.low, self.high)

    def movable(self, x: Float[Tensor, "*s"], direction: Float[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
        """Coordinates that are not at a bound which the direction points out of."""
        return ~(((x >= self.high) & (direction > 0)) | ((x <= self.low) & (direction < 0)))

    def inside(self, w: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """From the whole space into the box, by tanh; only clipped where a side is unbounded.

        Reference:
            Carlini & Wagner (2016), arXiv 1608.04644, section V.B (change of variables).
        """
        if not self._bounded:
            return self.clip(w)
        return self._middle + self._half * w.tanh()

    def outside(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Inverse of `inside`, finite also at the bounds, which it leaves by a millionth."""
        if not self._bounded:
            return x.clone()
        return torch.atanh((x - self._middle) / self._half * _WITHIN)

    @property
    def _bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def _middle(self) -> float:
        return (self.high + self.low) / 2

    @property
    def _half(self) -> float:
        return (self.high - self.low) / 2
