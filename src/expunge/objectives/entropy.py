"""Maximum entropy: towards the uniform distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits

Direction = Literal["to-uniform", "from-uniform"]


@dataclass(frozen=True)
class MaxEntropy(Objective):
    r"""Divergence from the uniform distribution U over the v tokens, per token of the response.

    `to-uniform` is $KL(p \,\|\, U) = \log v - H(p)$, whose minimisation maximises entropy; its gradient
    vanishes where p is one-hot. `from-uniform` is $KL(U \,\|\, p)$, as the authors' code has it, with the
    gradient p − 1/v on the logits. Both are zero at U only.

    Args:
        source: The data set that it reads.
        direction: Which of the two.

    Reference:
        Yuan et al. (2024), arXiv 2410.08109, section 4 (ME).
    """

    source: str = "forget"
    direction: Direction = "to-uniform"

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"`direction` must be one of {get_args(Direction)}; got {self.direction!r}.")

    @property
    def name(self) -> str:
        return f"entropy({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        log_probs = tokens.scores.log_softmax(1)
        size = math.log(log_probs.shape[1])
        if self.direction == "from-uniform":
            return -log_probs.mean(1) - size
        return (log_probs.exp() * log_probs).sum(1) + size
