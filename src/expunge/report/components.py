"""A benchmark's numbers, arranged as the page shows them: aggregates first, then every component.

A benchmark's record has splits of its own; what the user's own forget, retain and holdout sets were measured
with is laid out by `tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.record import Metric, RunRecord
from expunge.report.board import Board, Model, Published, board, shared_keys
from expunge.report.tables import Cell, anchor, stages
from expunge.report.wording import (
    ALL,
    METRICS,
    SPLITS,
    interval_text,
    meaning,
    split_title,
    stage_titles,
    value_text,
    words,
)

_MOST_HEADLINES = 5
_UNBOUNDED = ("nll", "loss", "perplexity", "norm", "privleak")


@dataclass(frozen=True, slots=True)
class Component:
    """One metric of one split: a cell per stage, and where a link finds it."""

    name: str
    meaning: str
    records: str
    cells: tuple[Cell, ...]
    anchor: str
    metrics: tuple[Metric | None, ...]
    bounded: bool


@dataclass(frozen=True, slots=True)
class Group:
    """One split with all of its metrics; `samples` is the anchor of its records, if any are shown."""

    split: str
    title: str
    rows: tuple[Component, ...]
    samples: str | None


@dataclass(frozen=True, slots=True)
class Headline:
    """One number in large type, with what it is measured against."""

    name: str
    value: str
    sentence: str
    meaning: str
    anchor: str


def groups(record: RunRecord) -> list[Group]:
    """All splits with their metrics, aggregates first."""
    evaluations = record.evaluations.values()
    found = dict.fromkeys(split for evaluation in evaluations for split in evaluation.splits)
    shown = {sample.split for sample in record.samples if sample.generations}
    return [
        Group(
            split, split_title(split), _components(record, split), anchor(split) if split in shown else None
        )
        for split in _ordered(found, (ALL, *SPLITS))
    ]


def headlines(record: RunRecord) -> list[Headline]:
    """The aggregates (or, where there are none, the first metric of each split) of the model in question."""
    every = groups(record)
    chosen = [(group, row) for group in every if group.split == ALL for row in group.rows]
    chosen = chosen or [(group, group.rows[0]) for group in every if group.rows]
    return [_headline(record, group, row) for group, row in chosen[:_MOST_HEADLINES]]


def beside(record: RunRecord, published: Sequence[Published]) -> Board | None:
    """The record's models above published rows, in the metrics that both have; None where there are none."""
    titles = stage_titles(record)
    models = [Model(titles[stage], "", record.evaluations[stage].splits, "") for stage in stages(record)]
    keys = shared_keys(models, published)
    return board("Published results", keys, models, published) if keys else None


def bounded(name: str, metrics: Sequence[Metric | None]) -> bool:
    """Whether a metric can be drawn between 0 and 1."""
    found = [metric for metric in metrics if metric is not None]
    inside = all(0 <= metric.value <= 1 for metric in found)
    return bool(found) and inside and not any(part in name for part in _UNBOUNDED)


def _components(record: RunRecord, split: str) -> tuple[Component, ...]:
    found = dict.fromkeys(name for e in record.evaluations.values() for name in e.splits.get(split, {}))
    return tuple(_component(record, split, name) for name in _ordered(found, tuple(METRICS)))


def _component(record: RunRecord, split: str, name: str) -> Component:
    metrics = tuple(record.evaluations[stage].splits.get(split, {}).get(name) for stage in stages(record))
    cells = (
        Cell(value_text(name, found.value), interval_text(name, found)) if found else Cell()
        for found in metrics
    )
    counts = dict.fromkeys(str(found.n) for found in metrics if found)
    said = words(name)
    return Component(
        said.name,
        meaning(name, record.configuration.get("benchmark")),
        " / ".join(counts),
        tuple(cells),
        anchor(split, name),
        metrics,
        bounded(name, metrics),
    )


def _headline(record: RunRecord, group: Group, row: Component) -> Headline:
    names = [titles for stage, titles in stage_titles(record).items() if stage in record.evaluations]
    main = 1 if "after" in record.evaluations and "before" in record.evaluations else 0
    others = [
        f"{name} {cell.value} {cell.interval}".strip()
        for i, (name, cell) in enumerate(zip(names, row.cells, strict=True))
        if i != main
    ]
    own = f"{row.cells[main].interval} over {row.records} records"
    name = row.name if group.split == ALL else f"{row.name}, {group.title}"
    return Headline(name, row.cells[main].value, "; ".join([own, *others]), row.meaning, row.anchor)


def _ordered(found: Mapping[str, None], first: Sequence[str]) -> list[str]:
    return [name for name in first if name in found] + [name for name in found if name not in first]
