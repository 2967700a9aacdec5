"""Objectives: scalar losses on one data source, always minimised.

An objective sees next-token logits at label positions and answers one value per label token; its
loss is the mean over all tokens of the step, however many micro-batches or ranks they came from.
It knows nothing of gradients, weights or data files. A user's own objective is any frozen
dataclass with `name`, `source` and `__call__`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenLogits:
    """Next-token logits at the k label positions of a batch.

    Args:
        logits: Unnormalised scores, any floating dtype.
        targets: The token that stands there.
        rows: Index of the batch row that each position belongs to.
    """

    logits: Float[Tensor, "k v"]
    targets: Int[Tensor, " k"]
    rows: Int[Tensor, " k"]

    @cached_property
    def target_log_probs(self) -> Float[Tensor, " k"]:
        """Log p(target | prefix), in nats, computed in fp32 (fp64 stays fp64)."""
        logits = self.logits if self.logits.element_size() > 4 else self.logits.float()
        return -F.cross_entropy(logits, self.targets, reduction="none")


@runtime_checkable
class Objective(Protocol):
    """A loss on one data source."""

    @property
    def name(self) -> str:
        """Key in logs and records; unique within a method."""
        ...

    @property
    def source(self) -> str:
        """The data set that it reads: `forget` or `retain`."""
        ...

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        """One value per label token."""
        ...


@dataclass(frozen=True)
class NLL:
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
class Ascent:
    r"""The negative of another objective: gradient ascent in an algebra that only minimises.

    `Ascent(NLL("forget"))` is the forget loss of GA, GDiff and NGDiff. It is unbounded below.

    Reference:
        Jang et al. (2022), arXiv 2210.01504, equation 1.
    """

    of: Objective

    @property
    def name(self) -> str:
        return f"-{self.of.name}"

    @property
    def source(self) -> str:
        return self.of.source

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        return -self.of(tokens)
