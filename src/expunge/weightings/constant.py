"""Weights that are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Constant:
    """The same weights at every step (GDiff: 1 on forget, α on retain).

    Args:
        weights: One finite number per objective.
    """

    weights: tuple[float, ...]

    needs_gramian = False

    def __post_init__(self) -> None:
        if not self.weights or not all(abs(w) < float("inf") for w in self.weights):
            raise ValueError(f"`weights` must be one finite number per objective; got {self.weights}.")

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        if len(self.weights) != len(losses):
            raise ValueError(
                f"`weights` must have one entry per objective ({len(losses)}); got {self.weights}."
            )
        return torch.tensor(self.weights, dtype=torch.float64)
