"""Flat logits, without a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class LogitMargin(Objective):
    r"""Logit-margin flattening, $(\max_v z_v - \frac{1}{v} \sum_v z_v)^2$ per token.

    Zero exactly where all logits are equal. It needs no softmax, and its gradient does not vanish
    where the distribution is one-hot. It is the mean over response tokens; the authors' code averages
    over prompt and padding too.

    Args:
        source: The data set that it reads.

    Reference:
        Entesari et al. (2025), arXiv 2506.05314, section 3 (PDU's forget loss).
    """

    source: str = "forget"

    @property
    def name(self) -> str:
        return f"margin({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        return (tokens.scores.amax(1) - tokens.scores.mean(1)).square()
