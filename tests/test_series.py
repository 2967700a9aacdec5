"""Series of runs: the order, the values, and what cannot be one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from expunge.benchmarks.series import Series, series
from expunge.errors import UsageError
from expunge.record import write_record
from record_factory import evaluation, run_record, sparse_record


def runs(folder: Path, sizes: tuple[int, ...]) -> list[Path]:
    """Run folders with forget sets of the given sizes; each keeps a little less than the one before."""
    folders = []
    for i, size in enumerate(sizes):
        record = run_record(history=0, sample_count=3, after=evaluation(0.1, 0.9 - i / 10, 0.1))
        forget = record.data["forget"].model_copy(update={"rows": size})
        folders.append(folder / f"run-{i}")
        write_record(record.model_copy(update={"data": record.data | {"forget": forget}}), folders[-1])
    return folders


def test_sizes_are_ordered_and_values_are_those_after(tmp_path: Path) -> None:
    found = series(runs(tmp_path, (300, 100, 200)), "size")
    kept = found.values("retain", "leak")
    assert [at for at, _ in kept] == [100, 200, 300]
    assert [metric.value for _, metric in kept] == pytest.approx([0.8, 0.7, 0.9])
    assert found.values("retain", "unheard") == []
    assert Series.model_validate_json(found.model_dump_json()) == found


def test_requests_stay_in_order(tmp_path: Path) -> None:
    folders = runs(tmp_path, (100, 100, 100))
    found = series([folders[2], folders[0], folders[1]], "request")
    assert [(point.at, point.source) for point in found.points] == [
        (1, str(folders[2])),
        (2, str(folders[0])),
        (3, str(folders[1])),
    ]


def test_sizes_may_be_stated(tmp_path: Path) -> None:
    found = series(runs(tmp_path, (100, 100)), "size", sizes=[3.3e6, 0.8e6])
    assert [point.at for point in found.points] == [0.8e6, 3.3e6]


@pytest.mark.parametrize(("axis", "sizes"), [("request", [1.0, 2.0]), ("size", [1.0])])
def test_sizes_that_do_not_fit_are_refused(
    axis: Literal["size", "request"], sizes: list[float], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`sizes` must be one per folder, with the axis 'size'"):
        series(runs(tmp_path, (1, 2)), axis, sizes=sizes)


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    folders = runs(tmp_path, (100, 100))
    with pytest.raises(UsageError, match="at least two run folders; got 1"):
        series(folders[:1], "request")
    with pytest.raises(UsageError, match=r"Sizes of a series must differ; .*run-0 and .*run-1 both have 100"):
        series(folders, "size")
    write_record(sparse_record(), tmp_path / "bare")
    with pytest.raises(UsageError, match=r"bare must hold an evaluation"):
        series([folders[0], tmp_path / "bare"], "request")
    with pytest.raises(
        UsageError, match=r"bare must hold the forget set for a series by size; it holds no data"
    ):
        series([folders[0], tmp_path / "bare"], "size")
    found = evaluation(0.1, 0.9, 0.1)
    other = found.model_copy(update={"splits": {"elsewhere": found.splits["forget"]}})
    write_record(sparse_record(evaluations={"before": other}), tmp_path / "other")
    with pytest.raises(UsageError, match="must have a metric in common"):
        series([folders[0], tmp_path / "other"], "request")
