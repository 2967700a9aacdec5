"""Gradient ascent whose tokens count by how well they are still known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.objectives._checks import non_negative
from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class WGA(Objective):
    r"""Weighted gradient ascent, $p^\beta \log p$ per token, without gradient through the weight.

    The weight cancels the inverse probability in the gradient of ascent, which otherwise lets tokens
    that are long forgotten dominate. β = 0 is gradient ascent.

    Args:
        source: The data set that it reads.
        beta: Exponent β of the probability, non-negative.

    Reference:
        Wang et al. (2025), arXiv 2502.19301, section 5 (WGA).
    """

    source: str = "forget"
    beta: float = 1.0

    def __post_init__(self) -> None:
        non_negative("beta", self.beta)

    @property
    def name(self) -> str:
        return f"wga({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        log_probs = tokens.target_log_probs
        return (self.beta * log_probs.detach()).exp() * log_probs


@dataclass(frozen=True)
class SatImp(Objective):
    r"""Saturation and importance, $p^{\beta_1} (1 - p)^{\beta_2} \log p$ per token, weight without gradient.

    The first factor leaves saturated (forgotten) tokens alone, the second those that are still certain,
    which mostly carry grammar rather than facts.

    Args:
        source: The data set that it reads.
        saturation: β₁, non-negative.
        importance: β₂, non-negative.

    Reference:
        Yang et al. (2025), arXiv 2505.11953, section 5 (SatImp); β₁ = 5, β₂ = 1.
    """

    source: str = "forget"
    saturation: float = 5.0
    importance: float = 1.0

    def __post_init__(self) -> None:
        non_negative("saturation", self.saturation)
        non_negative("importance", self.importance)

    @property
    def name(self) -> str:
        return f"satimp({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        log_probs = tokens.target_log_probs
        fixed = log_probs.detach()
        unknown = (-torch.expm1(fixed)).clamp(min=0)  # 1 − p, which rounding may take below zero
        weight = (self.saturation * fixed).exp() * unknown**self.importance
        return weight * log_probs
