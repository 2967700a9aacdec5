"""The record's numbers and texts, arranged as the page's tables show them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from expunge.record import Metric, RunRecord, Sample, Stage
from expunge.report.spans import Overlap, Piece, overlap
from expunge.report.text import clip
from expunge.report.wording import (
    ABSENT,
    METRICS,
    SPLITS,
    STAGES,
    interval_text,
    is_benchmark,
    stage_titles,
    value_text,
    words,
)

MOST_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric's value and interval as text; a dash when it was not measured."""

    value: str = ABSENT
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One split of one metric, a cell per stage."""

    split: str
    records: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class MetricTable:
    """One metric with a row per split."""

    name: str
    meaning: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What one model said to a sample's prompt; an empty label means that it was not asked."""

    stage: str
    pieces: tuple[Piece, ...]
    cut: int
    label: str
    leaked: bool
    nll: float | None


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A sample with everything that was said about it; `cut` counts the characters left out."""

    prompt: str
    prompt_cut: int
    response: str
    response_cut: int
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """The samples of one split, of the `whole` number of records that it has, if known."""

    split: str
    stages: tuple[str, ...]
    rows: tuple[SampleRow, ...]
    whole: int | None
    anchor: str


@dataclass(frozen=True, slots=True)
class Course:
    """A run's history in a few totals; `marks` explain what stands in its pictures."""

    steps: int
    repairs: int
    narrowed: int
    tokens: int
    seconds: float
    decisions: tuple[tuple[str, int], ...]
    checks: int
    marks: tuple[str, ...]


def anchor(split: str, metric: str = "") -> str:
    """The id of a metric's row, or of a split's samples, on the page of its record."""
    digest = hashlib.sha256(f"{split}\0{metric}".encode()).hexdigest()[:12]
    return f"m-{digest}" if metric else f"s-{digest}"


def stages(record: RunRecord) -> list[Stage]:
    """The stages that were evaluated, in their natural order."""
    return [stage for stage in STAGES if stage in record.evaluations]


def metric_tables(record: RunRecord) -> list[MetricTable]:
    """One table per metric, the known ones first in their own order."""
    evaluations = record.evaluations.values()
    found = dict.fromkeys(name for e in evaluations for metrics in e.splits.values() for name in metrics)
    names = [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]
    return [MetricTable(words(name).name, words(name).meaning, _rows(record, name)) for name in names]


def _rows(record: RunRecord, name: str) -> tuple[Row, ...]:
    found = dict.fromkeys(split for e in record.evaluations.values() for split in e.splits)
    splits = [split for split in SPLITS if split in found] + [split for split in found if split not in SPLITS]
    rows = ((split, [_metric(record, stage, split, name) for stage in stages(record)]) for split in splits)
    return tuple(
        Row(split, _counts(metrics), tuple(_cell(name, found) for found in metrics))
        for split, metrics in rows
        if any(metrics)
    )


def _metric(record: RunRecord, stage: Stage, split: str, name: str) -> Metric | None:
    return record.evaluations[stage].splits.get(split, {}).get(name)


def _counts(metrics: list[Metric | None]) -> str:
    counts = dict.fromkeys(str(found.n) for found in metrics if found)
    return " / ".join(counts)


def _cell(name: str, found: Metric | None) -> Cell:
    return Cell(value_text(name, found.value), interval_text(name, found)) if found else Cell()


def sample_groups(record: RunRecord) -> list[SampleGroup]:
    """The samples by split: forget first, at most `MOST_SAMPLES` of each."""
    splits = dict.fromkeys(sample.split for sample in record.samples if sample.generations)
    ordered = [split for split in SPLITS if split in splits] + [s for s in splits if s not in SPLITS]
    return [_group(record, split) for split in ordered]


def _group(record: RunRecord, split: str) -> SampleGroup:
    shown = [sample for sample in record.samples if sample.split == split][:MOST_SAMPLES]
    titles = {
        stage: title
        for stage, title in stage_titles(record).items()
        if any(stage in s.generations for s in shown)
    }
    given_away = "given away" if is_benchmark(record) else "reproduced in full"
    rows = tuple(_sample_row(sample, titles, given_away) for sample in shown)
    whole = record.data[split].rows if split in record.data else None
    return SampleGroup(split, tuple(titles.values()), rows, whole, anchor(split))


def _sample_row(sample: Sample, titles: Mapping[Stage, str], given_away: str) -> SampleRow:
    said = tuple(_said(sample, stage, title, given_away) for stage, title in titles.items())
    return SampleRow(*clip(sample.prompt), *clip(sample.response), said)


def _said(sample: Sample, stage: Stage, title: str, given_away: str) -> Said:
    if stage not in sample.generations:
        return Said(title, (), 0, "", False, None)
    generation, cut = clip(sample.generations[stage])
    found = overlap(clip(sample.response)[0], generation, clip(sample.prompt)[0])
    leaked = sample.leaked.get(stage, False)
    return Said(
        title, found.pieces, cut, given_away if leaked else _label(found), leaked, sample.nll.get(stage)
    )


def _label(found: Overlap) -> str:
    return (
        f"shares {found.shared_words} of {found.response_words} words"
        if found.shared_words
        else "not reproduced"
    )


def course(record: RunRecord) -> Course:
    """Totals over the history."""
    return Course(
        steps=len(record.history),
        repairs=sum(step.repair for step in record.history),
        narrowed=_narrowed(record),
        tokens=sum(step.tokens for step in record.history),
        seconds=math.fsum(step.seconds for step in record.history),
        decisions=tuple(Counter(probe.decision for probe in record.probes).most_common(12)),
        checks=len(record.checks),
        marks=tuple(_marks(record)),
    )


def _narrowed(record: RunRecord) -> int:
    """Steps whose forget rows were drawn from those alone that the last look before them named."""
    if not record.configuration.get("leaks_first"):
        return 0
    named = {check.step: bool(check.remaining) for check in record.checks}
    drawn, narrowed = 0, False
    for step in record.history:
        narrowed = named.get(step.step - 1, narrowed)
        drawn += narrowed and not step.repair
    return drawn


def _marks(record: RunRecord) -> Iterator[str]:
    if any(step.repair for step in record.history):
        yield "grey bands are repair steps"
    if record.probes:
        yield "ticks at the foot are probes"
    if record.stop:
        yield "the dashed upright line is where the run ended"
        if record.stop.restored_step is not None:
            yield "the dotted one is the step whose state was returned"
