"""Direct preference of another response over the one to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._checks import positive
from expunge.objectives.npo import log_ratio
from expunge.objectives.objective import Needs, Objective, Unit
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class DPO(Objective):
    r"""Preference of another response, $-\frac{2}{\beta} \log\sigma(\beta (r(y_w) - r(y)))$ per row.

    $r(y) = \log\frac{\pi(y|x)}{\pi_{ref}(y|x)}$ over the whole response; y is the response to be
    forgotten and $y_w$ the preferred one of the same row: a refusal (IDK preference) or an answer made
    up by the model itself (AltPO). The factor 2/β, usual in unlearning, puts it on the scale of `NPO`,
    which it becomes when $r(y_w) = 0$; the original loss has the factor 1.

    Args:
        preferred: The data set that holds the preferred responses, row by row: "idk" or "alternate".
        source: The data set whose responses are to be forgotten.
        beta: Inverse temperature β, positive.

    Reference:
        Rafailov et al. (2023), arXiv 2305.18290, equation 7; Zhang et al. (2024), arXiv 2404.05868,
        section 2 (refusals); Mekala et al. (2024), arXiv 2409.13474 (AltPO: alternate answers).
    """

    preferred: str = "idk"
    source: str = "forget"
    beta: float = 0.1

    unit: ClassVar[Unit] = "row"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if self.preferred == self.source:
            raise ValueError(
                f"`preferred` must be another data set than `source`; got {self.preferred!r} twice."
            )

    @property
    def name(self) -> str:
        return f"dpo({self.preferred}>{self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="log_probs", paired=self.preferred)

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " b"]:
        preference = log_ratio(_given.paired(tokens)) - log_ratio(tokens)
        return -2 / self.beta * F.logsigmoid(self.beta * preference)
