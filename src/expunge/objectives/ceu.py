"""Cross-entropy unlearning: the model's own distribution without the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives._others import without_target
from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class CEU(Objective):
    r"""Cross-entropy unlearning, $H(q, p)$ per token, with q the model's own p without the target.

    $q = \mathrm{softmax}(z)$ with the target's logit at −∞, renormalised, and without gradient. The
    gradient on the logits is p − q, hence p on the target. The first `skip` tokens of every row, whose
    content is rarely the fact itself, get value and gradient zero. They count in the mean all the same: a row
    of n tokens weighs (n − skip)/n of what it does in the authors' code, whose mean leaves them out.

    Args:
        source: The data set that it reads.
        skip: Response tokens left alone at the start of a row, non-negative; 1 in the paper.

    Reference:
        Yang (2025), arXiv 2503.01224, and its footnote on training settings (`skip`).
    """

    source: str = "forget"
    skip: int = 1

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"`skip` must be non-negative; got {self.skip}.")

    @property
    def name(self) -> str:
        return f"ce-u({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        aim = without_target(tokens.scores.detach(), tokens.targets).softmax(1)
        values = F.cross_entropy(tokens.scores, aim, reduction="none")
        return values * (tokens.places >= self.skip)
