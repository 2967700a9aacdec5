"""Self-distillation towards the reference with the target's logit lowered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._checks import positive
from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class UNDIAL(Objective):
    r"""Distillation from adjusted logits, $H(\mathrm{softmax}(z_{ref} - \gamma e_y),\, p)$ per token.

    H(q, p) is the cross-entropy. The teacher is the reference model with γ taken off the logit of the
    target y, so the model learns a fixed distribution and cannot run away. Its mean is over response
    tokens only: positions without a label have no target whose logit could be lowered.

    Args:
        source: The data set that it reads.
        gamma: Strength γ in logits, positive.

    Reference:
        Dong et al. (2024), arXiv 2402.10052, section 3; γ = 10 as in OpenUnlearning's configuration.
    """

    source: str = "forget"
    gamma: float = 10.0

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)

    @property
    def name(self) -> str:
        return f"undial({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="logits")

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        teacher = _given.reference_scores(tokens)
        lowered = torch.full_like(tokens.targets[:, None], -self.gamma, dtype=teacher.dtype)
        adjusted = teacher.scatter_add(1, tokens.targets[:, None], lowered)
        return F.cross_entropy(tokens.scores, adjusted.softmax(1), reduction="none")
