"""Every metric that can be listed has a page that says what it is and when it misleads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from expunge.catalogue import catalogue

PAGES = Path(__file__).resolve().parents[1] / "docs" / "metrics"
INDEX = (PAGES / "README.md").read_text(encoding="utf-8")
LISTED = {
    name.strip(): target
    for names, target in re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\)", INDEX, re.MULTILINE)
    for name in names.split(",")
}


@pytest.mark.parametrize("metric", catalogue()["metrics"])
def test_a_metric_has_a_page(metric: str) -> None:
    assert metric in LISTED, f"docs/metrics/README.md must list {metric}"
    text = (PAGES / LISTED[metric].partition("#")[0]).read_text(encoding="utf-8")
    assert metric in text
    for part in ("**Source:**", "**Interval:**", "## When it misleads"):
        assert part in text


def test_every_listed_metric_exists() -> None:
    assert set(LISTED) <= set(catalogue()["metrics"])


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+\.md)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
    assert page.name == "README.md" or page.name in INDEX
