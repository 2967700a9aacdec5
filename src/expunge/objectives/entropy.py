"""Maximum entropy: towards the uniform distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class MaxEntropy(Objective):
    r"""Divergence from the uniform distribution U over the v tokens, per token of the response.

    $KL(p \,\|\, U) = \log v - H(p)$, whose minimisation maximises entropy; its gradient vanishes where p is
    one-hot. The authors' code has $KL(U \,\|\, p)$, with the gradient p − 1/v on the logits. Both are zero
    at U only.

    Args:
        source: The data set that it reads.
        from_uniform: Take $KL(U \,\|\, p)$.

    Reference:
        Yuan et al. (2024), arXiv 2410.08109, section 4 (ME).
    """

    source: str = "forget"
    from_uniform: bool = False

    @property
    def name(self) -> str:
        return f"entropy({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        log_probs = tokens.scores.log_softmax(1)
        size = math.log(log_probs.shape[1])
        if self.from_uniform:
            return -log_probs.mean(1) - size
        return (log_probs.exp() * log_probs).sum(1) + size
