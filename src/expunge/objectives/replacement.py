"""Generic tokens in the place of telling ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives.objective import GenericLabels, Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class Replacement(Objective):
    r"""Fine-tuning on generic labels, $-\log p(y'_t)$ per token (Who's Harry Potter).

    The generic label $y'_t$ is the best token of
    $v_{ref} - \alpha\, \mathrm{ReLU}(v_{reinforced} - v_{ref})$, where the reinforced model is a second one,
    trained further on the forget set. It is asked once, before training.

    Without one its boost is taken to be large on the target and zero elsewhere: $y'_t$ is the reference's
    best other guess, found once as well. That fits the telling tokens only (the anchored terms), whereas of
    others the generic label is mostly the token itself: use it as `Selected(Replacement(), "entities")`,
    which leaves the others alone.

    Args:
        source: The data set that it reads.
        reinforced: Folder or name of the reinforced model; empty does without.
        alpha: α, positive; not read without a reinforced model.

    Reference:
        Eldan and Russinovich (2023), arXiv 2310.02238, equation 1 and section 2.
    """

    source: str = "forget"
    reinforced: str = ""
    alpha: float = 5.0

    @property
    def name(self) -> str:
        return f"replacement({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(generic=GenericLabels(self.reinforced, self.alpha))

    def __post_init__(self) -> None:
        GenericLabels(self.reinforced, self.alpha)  # refuses a bad α where it is given

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        return F.cross_entropy(tokens.scores, _given.generic(tokens), reduction="none")
