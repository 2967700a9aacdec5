"""The tables of docs/results.md say what the records in benchmarks/results/ say."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.comparison_record import Comparison
from expunge.report.comparison import markdown

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
STUDIES = [
    "lume", "lume_questions", "lume_task2", "tofu_forget05", "tofu_short", "tofu_short_again",
    "tofu_short_seeds",
]  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_stands_on_the_page(name):
    text = (ROOT / "benchmarks" / "results" / f"study_{name}.json").read_text(encoding="utf-8")
    lines = markdown(Comparison.model_validate_json(text)).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) >= 5
    assert [row for row in rows if row not in PAGE] == []
