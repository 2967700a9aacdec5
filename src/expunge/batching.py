"""Which rows meet in which step: length-grouped batches, drawn for several data sets at once.

A step's rows depend on the seed and the step number alone, so a resumed run sees what the
uninterrupted one would have seen. Knows lengths, not text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from expunge.collate import Encoded, collate

Item = tuple[str, Encoded]


class RowStream:
    """Batches of one data set: each pass visits every row once, rows of like length together.

    Rows are shuffled, cut into groups of `group` batches, sorted by length within a group, and the
    batches shuffled again; so padding is small and batches still differ from pass to pass.

    Args:
        lengths: Tokens per row.
        batch_size: Rows per batch at most; a pass is split as evenly as possible.
        seed: Any sequence of non-negative integers.
        group: Batches sorted together, at least 1.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: Sequence[int], group: int = 8) -> None:
        self.lengths = np.asarray(lengths)
        self.batches_per_pass = -(-len(lengths) // batch_size)
        self.seed, self.group = tuple(seed), group
        self._pass: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, step: int) -> list[int]:
        """Row numbers of the batch at this step, any number of passes ahead."""
        number, position = divmod(step, self.batches_per_pass)
        if self._pass[0] != number:
            self._pass = (number, self._draw(number))
        return self._pass[1][position]

    def _draw(self, number: int) -> list[list[int]]:
        generator = np.random.default_rng([*self.seed, number])
        rows = generator.permutation(len(self.lengths))
        groups = np.array_split(rows, -(-self.batches_per_pass // self.group))
        ordered = np.concatenate([g[np.argsort(self.lengths[g], kind="stable")] for g in groups])
        batches = np.array_split(ordered, self.batches_per_pass)
        return [batches[i].tolist() for i in generator.permutation(len(batches))]


class Draws(Sampler[list[tuple[str, int]]]):
    """One micro-batch per element: rows of every data set, as (data set, row) pairs.

    Args:
        streams: Data set -> its batches.
        length: Micro-batches in the whole run.
    """

    def __init__(self, streams: Mapping[str, RowStream], length: int) -> None:
        self.streams, self.length = dict(streams), length
        self.batch_size = None  # batches of a pass may differ by one row
        self.drop_last = False

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        for step in range(self.length):
            yield [(name, row) for name, stream in self.streams.items() for row in stream[step]]


class Sources(Dataset[Item]):
    """Encoded rows of every data set, addressed by (data set, row)."""

    def __init__(self, rows: Mapping[str, Sequence[Encoded]]) -> None:
        self.rows = dict(rows)

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def __getitem__(self, index: tuple[str, int]) -> Item:
        name, row = index
        return name, self.rows[name][row]


class BySource:
    """Collate a micro-batch into one padded batch per data set."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Item]) -> dict[str, dict[str, Tensor]]:
        names = dict.fromkeys(name for name, _ in items)
        return {n: collate([row for name, row in items if name == n], self.pad_id) for n in names}


def concatenate(batches: Sequence[Mapping[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """One right-padded batch from several: for a single forward pass over all data sets."""
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": -100}
    width = max(batch["input_ids"].shape[1] for batch in batches)
    return {
        key: torch.cat([_widen(batch[key], width, value) for batch in batches]) for key, value in fill.items()
    }


def _widen(tensor: Tensor, width: int, fill: int) -> Tensor:
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, missing), value=fill) if missing else tensor
