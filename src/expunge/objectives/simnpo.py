"""Simple negative preference optimisation: no reference, length-normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.objectives._checks import positive
from expunge.objectives.objective import Objective, Unit
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class SimNPO(Objective):
    r"""Simple NPO, $-\frac{2}{\beta} \log\sigma(-\frac{\beta}{|y|} \log\pi(y|x) - \gamma)$ per row.

    The reference of NPO is replaced by the length |y|, so that short responses are not forgotten at
    the expense of long ones. The authors' code has $\sigma(\beta(-\log\pi/|y| - \gamma))$, that is, a
    margin of βγ; the two agree at the default γ = 0.

    Args:
        source: The data set that it reads.
        beta: Inverse temperature β, positive.
        gamma: Margin γ, finite.

    Reference:
        Fan et al. (2024), arXiv 2410.07163, section 5; β = 2.5 as in the authors' repository
        for TOFU forget05.
    """

    source: str = "forget"
    beta: float = 2.5
    gamma: float = 0.0

    unit: ClassVar[Unit] = "row"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if not math.isfinite(self.gamma):
            raise ValueError(f"`gamma` must be finite; got {self.gamma}.")

    @property
    def name(self) -> str:
        return f"simnpo({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " b"]:
        mean = tokens.sum_rows(tokens.target_log_probs) / tokens.row_lengths
        return -2 / self.beta * F.logsigmoid(-self.beta * mean - self.gamma)
