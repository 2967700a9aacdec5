"""Which rows meet in which step: length-grouped batches, drawn for several data sets at once.

A step's rows depend on the seed and the step number alone, so a resumed run sees what the
uninterrupted one would have seen. Knows lengths, not text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from expunge.collate import Encoded, collate

Facts = Mapping[str, Sequence[npt.NDArray[Any]]]
"""Key -> for every row of a data set one value per label token."""

Item = tuple[str, Encoded, Mapping[str, npt.NDArray[Any]]]


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


Rows = Callable[[int], list[int]]
"""Micro-batch number -> row numbers."""


def drawn(stream: RowStream | Rows) -> Rows:
    """A stream as a function of the micro-batch's number."""
    return stream.__getitem__ if isinstance(stream, RowStream) else stream


class Draws(Sampler[list[tuple[str, int]]]):
    """One micro-batch per element: rows of every data set, as (data set, row) pairs.

    Args:
        streams: Data set -> its batches; sets that are paired row for row have the same.
        length: Micro-batches in the whole run.
    """

    def __init__(self, streams: Mapping[str, RowStream | Rows], length: int) -> None:
        self.streams = {name: drawn(stream) for name, stream in streams.items()}
        self.length = length
        self.batch_size = None  # batches of a pass may differ by one row
        self.drop_last = False

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        for step in range(self.length):
            yield [(name, row) for name, stream in self.streams.items() for row in stream(step)]


class Sources(Dataset[Item]):
    """Encoded rows of every data set, addressed by (data set, row), with what is known of their tokens.

    Args:
        rows: Data set -> rows.
        facts: Data set -> what is known of each label token, such as the reference's log-probability.
    """

    def __init__(
        self, rows: Mapping[str, Sequence[Encoded]], facts: Mapping[str, Facts] | None = None
    ) -> None:
        self.rows, self.facts = dict(rows), dict(facts or {})

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def __getitem__(self, index: tuple[str, int]) -> Item:
        name, row = index
        known = {key: values[row] for key, values in self.facts.get(name, {}).items()}
        return name, self.rows[name][row], known


class BySource:
    """Collate a micro-batch into one padded batch per data set."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Item]) -> dict[str, dict[str, Tensor]]:
        return {
            name: self._join([item for item in items if item[0] == name])
            for name in dict.fromkeys(item[0] for item in items)
        }

    def _join(self, items: Sequence[Item]) -> dict[str, Tensor]:
        batch = collate([row for _, row, _ in items], self.pad_id)
        for key in items[0][2]:
            batch[key] = _align([row for _, row, _ in items], [known[key] for _, _, known in items])
        return batch


def _align(rows: Sequence[Encoded], values: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Values of label tokens, laid out as the labels of the padded batch; zero elsewhere."""
    width = max(len(row.input_ids) for row in rows)
    out = torch.zeros(len(rows), width, dtype=torch.from_numpy(values[0]).dtype)
    for i, (row, known) in enumerate(zip(rows, values, strict=True)):
        out[i, row.prompt_length : len(row.input_ids)] = torch.from_numpy(known)
    return out


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
