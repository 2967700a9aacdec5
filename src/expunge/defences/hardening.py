"""Adversarial forgetting as options of any recipe: which adversaries the forget gradients have to stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expunge.defences.latent import Latent


@dataclass(frozen=True)
class Hardening:
    """Adversaries inside the objectives that read forget records, or sets derived from them.

    Retain objectives see none: what is kept is kept at the weights that are delivered.

    Args:
        sharpness: ρ, length of the move of the weights under which forgetting must hold (`sharpness.uphill`);
            0 is none. Costs a second forward and backward pass of the forget rows, and a copy of the weights.
        latent: Adversary on activations; None is none.
    """

    sharpness: float = 0.0
    latent: Latent | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sharpness < math.inf:
            raise ValueError(f"`sharpness` must be at least 0; got {self.sharpness}. 0 leaves it out.")

    def __bool__(self) -> bool:
        return self.sharpness > 0 or self.latent is not None
