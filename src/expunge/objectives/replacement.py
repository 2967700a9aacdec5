"""Generic tokens in the place of telling ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._others import without_target
from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class Replacement(Objective):
    r"""Fine-tuning on generic labels: telling tokens replaced, the others kept; $-\log p(y'_t)$ per token.

    $y'_t$ is the best token of $v_{ref} - \alpha\, \mathrm{ReLU}(v_{reinforced} - v_{ref})$, as in Who's
    Harry Potter. There the reinforced model is a second one, trained further on the forget set. Here its
    boost is taken to be large on the target of every token that the selector chose (the anchored terms)
    and zero elsewhere, so that no second model is trained or held: a chosen token is replaced by the
    reference's best other guess, any other token stays its own label.

    Args:
        selector: Name of the rule that chooses the telling tokens.
        source: The data set that it reads.

    Reference:
        Eldan and Russinovich (2023), arXiv 2310.02238, equation 1 and section 2.
    """

    selector: str = "entities"
    source: str = "forget"

    @property
    def name(self) -> str:
        return f"replacement({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="logits", selector=self.selector)

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        generic = without_target(_given.reference_scores(tokens), tokens.targets).argmax(1)
        labels = torch.where(_given.selected(tokens), generic, tokens.targets)
        return F.cross_entropy(tokens.scores, labels, reduction="none")
