"""The likelihood of the response, and its ascent."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class NLL(Objective):
    r"""Negative log-likelihood, $-\log p(y_t \mid x, y_{<t})$ per token.

    Args:
        source: The data set that it reads.
    """

    source: str = "retain"

    @property
    def name(self) -> str:
        return f"nll({self.source})"

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        return -tokens.target_log_probs


@dataclass(frozen=True)
class Ascent(Objective):
    r"""The negative of another objective: gradient ascent in an algebra that only minimises.

    `Ascent(NLL("forget"))` is the forget loss of GA, GDiff and NGDiff. It is unbounded below.

    Reference:
        Jang et al. (2022), arXiv 2210.01504, equation 1.
    """

    of: Objective

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.of.source

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.of.unit

    @property
    def name(self) -> str:
        return f"-{self.of.name}"

    @property
    def needs(self) -> Needs:
        return self.of.needs

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " n"]:
        return -self.of(tokens)
