"""Inverted hinge: the target below the next best token."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from expunge.objectives._others import without_target
from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class InvertedHinge(Objective):
    r"""Inverted hinge loss, $1 + p(y) - \max_{v \ne y} p(v)$ per token.

    Between 0 (another token is certain) and 2 (the target is): bounded on both sides. Only the target
    and its runner-up are pushed, so the rest of the distribution keeps its shape.

    Args:
        source: The data set that it reads.

    Reference:
        Cha et al. (2024), arXiv 2408.06621, section 3 (LoKU's IHL).
    """

    source: str = "forget"

    @property
    def name(self) -> str:
        return f"ihl({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        probs = tokens.scores.softmax(1)
        runner_up = without_target(probs, tokens.targets).amax(1)
        return 1 + tokens.target_log_probs.exp() - runner_up
