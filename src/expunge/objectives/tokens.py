"""What an objective sees of a batch: next-token logits at label positions, and what it asked for besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.objectives._chunks import in_chunks, wide


@dataclass(frozen=True)
class Reference:
    """The reference model at the same label positions; no gradient flows into it.

    Args:
        target_log_probs: Log p_ref(target | prefix), in nats.
        logits: Its logits, where an objective needs the whole distribution.
        hidden: Layer -> residual stream after that many blocks, where an objective needs it.
    """

    target_log_probs: Float[Tensor, " k"]
    logits: Float[Tensor, "k v"] | None = None
    hidden: Mapping[int, Float[Tensor, "k d"]] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenLogits:
    """Next-token logits at the k label positions of a batch.

    Args:
        logits: Unnormalised scores, any floating dtype.
        targets: The token that stands there.
        rows: Index of the batch row that each position belongs to; positions of a row are contiguous.
        selected: Tokens that a token-selective objective counts; None counts all.
        hidden: Layer -> residual stream after that many blocks (0: embeddings), for objectives that need it.
        reference: The reference model at these positions, for objectives that need it.
        paired: The same rows with their other response, in the same order, for objectives on pairs.
        counted: Place of each position within its whole response, from 0, where some were left out; None
            where none was (`places`).
        generic: Generic label of each position, for objectives that need it (`GenericLabels`).
    """

    logits: Float[Tensor, "k v"]
    targets: Int[Tensor, " k"]
    rows: Int[Tensor, " k"]
    selected: Bool[Tensor, " k"] | None = None
    hidden: Mapping[int, Float[Tensor, "k d"]] = field(default_factory=dict)
    reference: Reference | None = None
    paired: TokenLogits | None = None
    counted: Int[Tensor, " k"] | None = None
    generic: Int[Tensor, " k"] | None = None

    @property
    def places(self) -> Int[Tensor, " k"]:
        """Place of every position within its row's response, from 0."""
        if self.counted is not None:
            return self.counted
        _, owner, lengths = torch.unique_consecutive(self.rows, return_inverse=True, return_counts=True)
        starts: Tensor = lengths.cumsum(0) - lengths
        return torch.arange(len(self.rows), device=self.rows.device) - starts[owner]

    @cached_property
    def scores(self) -> Float[Tensor, "k v"]:
        """The logits in fp32 (fp64 stays fp64): losses are not computed in half precision."""
        return wide(self.logits)

    @cached_property
    def target_log_probs(self) -> Float[Tensor, " k"]:
        """Log p(target | prefix), in nats, computed in fp32 (fp64 stays fp64)."""
        return in_chunks(_log_probs, self.logits, self.targets)

    def sum_rows(self, values: Float[Tensor, " k"]) -> Float[Tensor, " b"]:
        """Sum of per-token values over the tokens of each row, rows in their order."""
        owner, count = self._owners
        return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, owner, values)

    @property
    def row_lengths(self) -> Float[Tensor, " b"]:
        """Label tokens of each row."""
        return self.sum_rows(torch.ones_like(self.rows, dtype=torch.float32))

    @cached_property
    def _owners(self) -> tuple[Tensor, int]:
        found, owner = torch.unique_consecutive(self.rows, return_inverse=True)
        return owner, len(found)


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(wide(logits), targets, reduction="none")
