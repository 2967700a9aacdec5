"""Divergence from the reference model."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._chunks import in_chunks, wide
from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class KL(Objective):
    r"""Divergence from the reference, $KL(p_{ref} \,\|\, p)$ per token of the response.

    Zero exactly where the model predicts as the reference does. Prompt and padding do not count: the
    mean is over label positions.

    Args:
        source: The data set that it reads.
        reverse: $KL(p \,\|\, p_{ref})$ instead: seeks a mode of the reference instead of covering it.

    Reference:
        Maini et al. (2024), arXiv 2401.06121, section 4 (KL minimisation).
    """

    source: str = "retain"
    reverse: bool = False

    @property
    def name(self) -> str:
        return f"{'reverse-' if self.reverse else ''}kl({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="logits")

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        return in_chunks(self._divergence, tokens.logits, _given.reference_logits(tokens))

    def _divergence(self, logits: Tensor, reference: Tensor) -> Tensor:
        model = wide(logits).log_softmax(1)
        start = reference.to(model.dtype).log_softmax(1)
        left, right = (model, start) if self.reverse else (start, model)
        return F.kl_div(right, left, reduction="none", log_target=True).sum(1)
