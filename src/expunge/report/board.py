"""Models under each other, a column per metric: one's own, those of other runs, and what others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.record import Metric
from expunge.report.tables import anchor
from expunge.report.text import visible
from expunge.report.wording import ABSENT, ALL, interval_text, split_title, value_text, words

Key = tuple[str, str]
"""Split and metric."""


@dataclass(frozen=True, slots=True)
class Published:
    """A row of somebody else's table, to stand beside one's own.

    Attributes:
        name: Of the team, method or model.
        values: `split/metric` ("all/final_score") -> value, in our unit: shares in [0, 1].
        source: Where the numbers stand.
    """

    name: str
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was measured; `page` is the address of its record's page ("" for this one, None: none)."""

    name: str
    note: str
    splits: Mapping[str, Mapping[str, Metric]]
    page: str | None = None


@dataclass(frozen=True, slots=True)
class BoardCell:
    """One number; `href` leads to where it stands among the others of its record."""

    column: str
    value: str = ABSENT
    interval: str = ""
    href: str | None = None


@dataclass(frozen=True, slots=True)
class BoardRow:
    """One model; `foreign` if its numbers were published by others."""

    name: str
    note: str
    cells: tuple[BoardCell, ...]
    href: str | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """A table of models, with the sources of the published rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[BoardRow, ...]
    sources: tuple[str, ...] = ()


def board(
    caption: str, keys: Sequence[Key], models: Sequence[Model], published: Sequence[Published]
) -> Board:
    """The models, then the published rows that state one of the metrics."""
    columns = tuple(column(*key, alone=caption == split_title(key[0])) for key in keys)
    ours = [
        BoardRow(model.name, model.note, _measured(model, keys, columns), model.page or None)
        for model in models
    ]
    stated = [row for row in published if any(f"{split}/{name}" in row.values for split, name in keys)]
    theirs = [
        BoardRow(visible(row.name), "published", _stated(row, keys, columns), None, True) for row in stated
    ]
    sources = tuple(dict.fromkeys(visible(row.source) for row in stated))
    return Board(caption, columns, (*ours, *theirs), sources)


def shared_keys(models: Sequence[Model], published: Sequence[Published]) -> list[Key]:
    """The metrics that a model has and a published row states, in the order of the published rows."""
    found = {(split, name) for model in models for split, metrics in model.splits.items() for name in metrics}
    stated = dict.fromkeys(key for row in published for key in row.values)
    return [key for text in stated if (key := _key(text)) in found]


def column(split: str, metric: str, *, alone: bool = False) -> str:
    """How a metric is called at the head of a column; without its split where that stands above."""
    name = words(metric).name
    return name if alone or split == ALL else f"{name}, {split_title(split)}"


def _key(text: str) -> Key:
    split, _, metric = text.rpartition("/")
    return split, metric


def _measured(model: Model, keys: Sequence[Key], columns: Sequence[str]) -> tuple[BoardCell, ...]:
    cells = []
    for (split, name), head in zip(keys, columns, strict=True):
        found = model.splits.get(split, {}).get(name)
        href = None if model.page is None else f"{model.page}#{anchor(split, name)}"
        cells.append(
            BoardCell(head, value_text(name, found.value), interval_text(name, found), href)
            if found
            else BoardCell(head)
        )
    return tuple(cells)


def _stated(row: Published, keys: Sequence[Key], columns: Sequence[str]) -> tuple[BoardCell, ...]:
    return tuple(
        BoardCell(head, value_text(name, row.values[f"{split}/{name}"]))
        if f"{split}/{name}" in row.values
        else BoardCell(head)
        for (split, name), head in zip(keys, columns, strict=True)
    )
