"""Cross-entropy against a token: bounded below, and strongest where the token is known best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.objectives.objective import Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class UCE(Objective):
    r"""Unlearning cross-entropy, $-\log(1 - c\,p_t)$ per token, with $p_t = p(y_t \mid x, y_{<t})$.

    With $c = 1$ the gradient on the target's logit is $p_t$: it is full on a token that the model is sure of,
    and fades as the token is forgotten. Gradient ascent's is $1 - p_t$: nothing on a token that is
    known by heart, and never less on one that is long forgotten. Bounded below by 0. With $c = 1/2$ (in
    the same author's code) the gradient vanishes at $p_t \to 1$ too.

    Evaluated as a difference of two log-sum-exps, over all tokens and over all others, so that neither
    value nor gradient is lost to rounding where $p_t$ is 1 to working precision.

    Args:
        source: The data set that it reads.
        fraction: c, in (0, 1].

    Reference:
        Pan et al. (2024), arXiv 2412.20412, section 3 ($L_{UCE}$); the unlikelihood of Welleck et al.
        (2019), arXiv 1908.04319, equation 3.
    """

    source: str = "forget"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must be in (0, 1]; got {self.fraction}.")

    @property
    def name(self) -> str:
        return f"uce({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        if self.fraction < 1:
            return -torch.log1p(-self.fraction * tokens.target_log_probs.exp())
        others = tokens.scores.scatter(1, tokens.targets[:, None], -math.inf)
        return tokens.scores.logsumexp(1) - others.logsumexp(1)
