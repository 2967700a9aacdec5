"""Unlearning cross-entropy: bounded below, and fading as the token is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.objectives._chunks import in_chunks, wide
from expunge.objectives._others import without_target
from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class UCE(Objective):
    r"""Unlearning cross-entropy, $-\log(1 - p)$ per token, with p the probability of the target.

    Zero once the token is impossible. The gradient on the target logit is p: full at p → 1, fading as
    the token is forgotten, where gradient ascent's 1 − p does the opposite. $\log(1 - p)$ is the
    log-sum-exp of the other logits minus that of all, so it stays exact where log p rounds to zero.

    Args:
        source: The data set that it reads.
        half: Take $-\log(1 - p/2)$ instead, as the authors' published code does; its gradient on the
            target logit, p (1 − p) / (2 − p), vanishes at p → 1 too.

    Reference:
        Pan et al. (2024), arXiv 2412.20412, section III (MOLLM).
    """

    source: str = "forget"
    half: bool = False

    @property
    def name(self) -> str:
        return f"uce{'-half' if self.half else ''}({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        if self.half:
            return -torch.log1p(-tokens.target_log_probs.exp() / 2)
        return in_chunks(_others_share, tokens.logits, tokens.targets)


def _others_share(logits: Tensor, targets: Tensor) -> Tensor:
    """-log(1 - p)."""
    scores = wide(logits)
    return scores.logsumexp(1) - without_target(scores, targets).logsumexp(1)
