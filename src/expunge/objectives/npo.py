"""Negative preference optimisation: the losing half of a preference, against the reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._checks import positive
from expunge.objectives.objective import Needs, Objective, Unit
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class NPO(Objective):
    r"""Negative preference, $-\frac{2}{\beta} \log\sigma(-\beta\, r)$ per row.

    $r = \log\frac{\pi(y|x)}{\pi_{ref}(y|x)}$ of the whole response y, summed over its tokens. The gradient
    is that of ascent on $\log\pi(y|x)$ times $2 \pi^\beta / (\pi^\beta + \pi_{ref}^\beta)$: 1 at the
    reference, 0 once the response is unlikely. Bounded below by 0; β → 0 gives gradient ascent.

    Args:
        source: The data set that it reads.
        beta: Inverse temperature β, positive.

    Reference:
        Zhang et al. (2024), arXiv 2404.05868, equation 3; β = 0.1 as in the authors' configuration.
    """

    source: str = "forget"
    beta: float = 0.1

    unit: ClassVar[Unit] = "row"

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    @property
    def name(self) -> str:
        return f"npo({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="log_probs")

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " b"]:
        return -2 / self.beta * F.logsigmoid(-self.beta * log_ratio(tokens))


def log_ratio(tokens: TokenLogits) -> Float[Tensor, " b"]:
    """Log π(y|x) − log π_ref(y|x) of every row, summed over its response."""
    return tokens.sum_rows(tokens.target_log_probs - _given.reference(tokens).target_log_probs)
