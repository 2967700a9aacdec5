"""Others' results that belong beside a record: those of its benchmark, in the page's own terms."""

from __future__ import annotations

from expunge.benchmarks import leaderboards
from expunge.record import RunRecord
from expunge.report.board import Published

_COLUMNS = {
    "all/final_score": "final_score",
    "all/task_aggregate": "task_aggregate",
    "all/membership_score": "membership_score",
    "all/mmlu": "mmlu",
}


def known(record: RunRecord) -> list[Published]:
    """The published rows of the record's benchmark; none where it was measured on one's own records."""
    rows = leaderboards.published(str(record.configuration.get("benchmark", "")))
    return [
        Published(
            _named(row), {key: getattr(row, column) for key, column in _COLUMNS.items()}, f"7B; {row.source}"
        )
        for row in rows
    ]


def _named(row: leaderboards.Published) -> str:
    return f"{row.name} (baseline)" if row.baseline else row.name if row.ranked else f"{row.name} (unranked)"
