"""Scalability and sustainability: how measurements change as more is asked to be forgotten.

MUSE's fifth and sixth question (arXiv 2407.06460, C5 and C6) take no new metric. They take several
unlearned models: of forget sets of growing size (scalability), or after one removal request upon another
(sustainability). Each leaves a run folder; a series is their records in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from expunge.errors import UsageError
from expunge.record import Entry, Metric, RunRecord, Stage, read_record

Axis = Literal["size", "request"]

_STAGES: tuple[Stage, ...] = ("after", "before")


class SeriesPoint(Entry):
    """One model of a series."""

    at: float = Field(
        description="rows of the forget set (size), or which request this was, from 1 (request)"
    )
    source: str = Field(description="folder of the record")
    splits: dict[str, dict[str, Metric]] = Field(
        description="split -> metric -> value, of the unlearned model"
    )


class Series(Entry):
    """Measurements of several models, by what was asked of them; `model_dump_json` writes it to a file."""

    axis: Axis
    points: list[SeriesPoint] = Field(description="in ascending order of `at`")

    def values(self, split: str, metric: str) -> list[tuple[float, Metric]]:
        """One metric along the series: (at, value) of every point that has it."""
        return [
            (point.at, point.splits[split][metric])
            for point in self.points
            if metric in point.splits.get(split, {})
        ]


def series(folders: Sequence[Path], axis: Axis, sizes: Sequence[float] | None = None) -> Series:
    """The records of several runs as one series.

    Args:
        folders: Output folders. For "request" in the order of the requests; for "size" in any order.
        axis: "size" orders by rows of the forget set, "request" counts the folders.
        sizes: Size of each folder's forget set (in any unit: tokens, documents), where the records are
            evaluations that do not hold the forget set they follow. Only with "size".

    Raises:
        UsageError: There are fewer than two folders, a folder has no record or no evaluation, the records
            have no metric in common, or a size is unknown or stands twice.
        ValueError: `sizes` came with "request" or are not as many as the folders.
    """
    if len(folders) < 2:
        raise UsageError(f"A series must have at least two run folders; got {len(folders)}. Name more.")
    if sizes is not None and (axis != "size" or len(sizes) != len(folders)):
        raise ValueError(
            f"`sizes` must be one per folder, with the axis 'size'; got {len(sizes)} for {len(folders)} "
            f"folders with the axis {axis!r}."
        )
    records = [read_record(folder) for folder in folders]
    places = (
        [float(i) for i in range(1, len(folders) + 1)]
        if axis == "request"
        else [float(size) for size in sizes or map(_forget_rows, records, folders)]
    )
    points = [
        SeriesPoint(at=at, source=str(folder), splits=_splits(record, folder))
        for at, folder, record in zip(places, folders, records, strict=True)
    ]
    points.sort(key=lambda point: point.at)
    _check(points)
    return Series(axis=axis, points=points)


def _forget_rows(record: RunRecord, folder: Path) -> int:
    if "forget" not in record.data:
        raise UsageError(
            f"The record of {folder} must hold the forget set for a series by size; it holds "
            f"{', '.join(record.data) or 'no data'}. State the sizes, or name the folders of the runs."
        )
    return record.data["forget"].rows


def _splits(record: RunRecord, folder: Path) -> dict[str, dict[str, Metric]]:
    stage = next((stage for stage in _STAGES if stage in record.evaluations), None)
    if stage is None:
        raise UsageError(
            f"The record of {folder} must hold an evaluation; it holds none. Evaluate the model."
        )
    return record.evaluations[stage].splits


def _check(points: Sequence[SeriesPoint]) -> None:
    shared = set.intersection(
        *({(split, name) for split, metrics in point.splits.items() for name in metrics} for point in points)
    )
    if not shared:
        raise UsageError(
            f"Records of one series must have a metric in common; {points[0].source} and the others have "
            "none. Evaluate all models on one benchmark."
        )
    for one, next_ in pairwise(points):
        if one.at == next_.at:
            raise UsageError(
                f"Sizes of a series must differ; {one.source} and {next_.source} both have {one.at:g}. "
                "State the sizes, or order by request."
            )
