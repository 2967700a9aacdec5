"""Cross-entropy unlearning: the model's own distribution without the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from expunge.objectives._others import without_target
from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class CEU(Objective):
    r"""Cross-entropy unlearning, $H(q, p)$ per token, with q the model's own p without the target.

    $q = \mathrm{softmax}(z)$ with the target's logit at −∞, renormalised, and without gradient. The
    gradient on the logits is p − q, hence p on the target. The first `skip` tokens of every row, whose
    content is rarely the fact itself, get value and gradient zero; the loss stays a mean over all.

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
        return values * (_places(tokens.rows) >= self.skip)


def _places(rows: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Place of every position within its row, from 0."""
    _, owner, lengths = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
    starts: Tensor = lengths.cumsum(0) - lengths
    return torch.arange(len(rows), device=rows.device) - starts[owner]
