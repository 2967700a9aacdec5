"""Chunks: forget rows a few at a time with their own retain rows, seen several times before the next.

Pure arithmetic on row numbers: which rows meet in a step depends on the seed and the step number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chunks:
    """The order of rows with which AILS-NTUA won SemEval-2025 task 4.

    The forget rows are cut into chunks of `size`; each is joined with `ratio` times as many retain rows,
    drawn cyclically through the retain set, and seen `passes` times before the next chunk begins. After the
    last chunk the first comes again, with the next retain rows. The batch size counts forget rows; a
    micro-batch holds `ratio` times as many retain rows.

    Args:
        size: Forget rows in a chunk, at least 1.
        ratio: Retain rows per forget row, at least 1.
        passes: Passes over a chunk, at least 1.

    Reference:
        Premptis et al. (2025), arXiv 2503.02443; the defaults are the authors' published settings.
    """

    size: int = 32
    ratio: int = 7
    passes: int = 7

    def __post_init__(self) -> None:
        if min(self.size, self.ratio, self.passes) < 1:
            raise ValueError(
                "`size`, `ratio` and `passes` must be at least 1; "
                f"got {self.size}, {self.ratio}, {self.passes}."
            )

    def steps(self, forget: int, batch_size: int) -> int:
        """Micro-batches after which every chunk has had its passes."""
        return sum(self.passes * -(-size // batch_size) for size in self._sizes(forget))

    def unread(self, forget: int, batch_size: int, steps: int) -> int:
        """Forget rows that the first so many micro-batches do not hold."""
        missed = 0
        for size in self._sizes(forget):
            per_pass = -(-size // batch_size)
            parts = np.array_split(np.arange(size), per_pass)
            missed += sum(map(len, parts[max(steps, 0) :]))
            steps -= self.passes * per_pass
        return missed

    def rows(self, source: str, batch_size: int) -> int:
        """Rows of a data set in a micro-batch, at most."""
        forget = min(batch_size, self.size)
        return forget * self.ratio if source == "retain" else forget

    def _sizes(self, forget: int) -> list[int]:
        return [min(self.size, forget - start) for start in range(0, forget, self.size)]


class ChunkPlan:
    """Row numbers of every micro-batch under `Chunks`.

    Args:
        chunks: The schedule.
        forget: Rows of the forget set.
        retain: Rows of the retain set.
        batch_size: Forget rows per micro-batch at most.
        seed: Of the order of the rows.
    """

    def __init__(self, chunks: Chunks, forget: int, retain: int, batch_size: int, seed: int) -> None:
        self.chunks, self.seed = chunks, seed
        order = np.random.default_rng([seed, 0]).permutation(forget)
        self.parts = [order[start : start + chunks.size] for start in range(0, forget, chunks.size)]
        self.pool = np.random.default_rng([seed, 1]).permutation(retain)
        self.per_pass = [-(-len(part) // batch_size) for part in self.parts]
        self.ends = np.cumsum([chunks.passes * batches for batches in self.per_pass])

    def forget(self, step: int) -> list[int]:
        """Forget rows of a micro-batch."""
        around, chunk, seen, position = self._locate(step)
        return self._batch(self.parts[chunk], (around, chunk, seen, 0), chunk, position)

    def retain(self, step: int) -> list[int]:
        """Retain rows of a micro-batch."""
        around, chunk, seen, position = self._locate(step)
        total = sum(map(len, self.parts))
        before = around * total + sum(map(len, self.parts[:chunk]))
        first, count = before * self.chunks.ratio, len(self.parts[chunk]) * self.chunks.ratio
        rows = self.pool[np.arange(first, first + count) % len(self.pool)]
        return self._batch(rows, (around, chunk, seen, 1), chunk, position)

    def _batch(
        self, rows: Sequence[int] | np.ndarray, key: tuple[int, ...], chunk: int, position: int
    ) -> list[int]:
        shuffled = np.random.default_rng([self.seed, 2, *key]).permutation(rows)
        found: list[int] = np.array_split(shuffled, self.per_pass[chunk])[position].tolist()
        return found

    def _locate(self, step: int) -> tuple[int, int, int, int]:
        """Round over all chunks, chunk, pass over it, position in the pass."""
        around, inside = divmod(step, int(self.ends[-1]))
        chunk = int(np.searchsorted(self.ends, inside, side="right"))
        inside -= int(self.ends[chunk - 1]) if chunk else 0
        return around, chunk, *divmod(inside, self.per_pass[chunk])
