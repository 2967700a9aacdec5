"""Generic tokens in the place of telling ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._others import without_target
from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class Replacement(Objective):
    r"""Fine-tuning on generic labels, $-\log p(y'_t)$ per token, $y'_t$ the reference's best other guess.

    In Who's Harry Potter the generic label is the best token of
    $v_{ref} - \alpha\, \mathrm{ReLU}(v_{reinforced} - v_{ref})$, where the reinforced model is a second one,
    trained further on the forget set. Here its boost is taken to be large on the target and zero
    elsewhere, so that no second model is trained or held. That fits the telling tokens only (the anchored
    terms), whereas of others the generic label is mostly the token itself: use it as
    `Selected(Replacement(), "entities")`, which leaves the others alone.

    Args:
        source: The data set that it reads.

    Reference:
        Eldan and Russinovich (2023), arXiv 2310.02238, equation 1 and section 2.
    """

    source: str = "forget"

    @property
    def name(self) -> str:
        return f"replacement({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="logits")

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        generic = without_target(_given.reference_scores(tokens), tokens.targets).argmax(1)
        return F.cross_entropy(tokens.scores, generic, reduction="none")
