"""The page of a comparison: right, escaped, and in a real browser in any width."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

import test_report_browser as browser
from comparison_factory import comparison
from expunge.comparison_record import Comparison
from expunge.report.comparison import markdown, render
from record_factory import INJECTIONS, map_strings

CLOSED = {
    "lower",
    "higher",
    "pending",
    "diverged",
    "failed",
    "done",
    "leak",
    "forget",
    "retain",
    "holdout",
    "nll",
}
chromium = browser.chromium


def poisoned() -> Comparison:
    """Every free string carries all injections; names of trials still agree."""
    payload = " ".join(INJECTIONS)

    def change(text: str) -> str:
        return text if text in CLOSED else f"{text} {payload}"

    return Comparison.model_validate(map_strings(comparison().model_dump(mode="json"), change, keys=False))


PAGES = {
    "seven": comparison,
    "one": lambda: comparison(seeds=1),
    "empty": lambda: comparison().model_copy(
        update={"settings": [], "methods": [], "before": {}, "model": None, "environment": None, "trials": []}
    ),
    "poisoned": poisoned,
}


class Texts(HTMLParser):
    """Rows of all tables, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def parsed(page: str) -> Texts:
    texts = Texts()
    texts.feed(page.replace("<wbr>", "").replace("\N{NO-BREAK SPACE}", " "))
    return texts


def test_the_page_shows_every_setting_and_links_every_run():
    found = comparison()
    texts = parsed(render(found))
    rows = {" ".join(row[0].split()): row for row in texts.rows if len(row) == 8}
    assert rows["ngdiff front"][1:5] == ["6 % [4–8]", "91 % [89–93]", "0.100", "0.855"]
    assert rows["before"][1:3] == ["96 %", "95 %"]
    assert rows["kl-min"][-1].strip() == "2× forgotten, 1× diverged, no model"
    linked = [f"./{trial.name.replace('=', '%3D')}/report.html" for trial in found.trials[:-1]]
    assert [link for link in texts.links if not link.startswith("#")] == linked
    trials = {row[0].strip(): row for row in texts.rows if len(row) == 6}
    assert trials["kl-min-seed2"][-1].strip() == "diverged, no modelThe losses are no longer finite."
    assert "out of memory | [x]" in trials["rmu-seed0"][-1]
    sources = {row[0]: [cell.split() for cell in row[1:]] for row in texts.rows if len(row) == 4}
    assert [cell[0] for cell in sources["code of rmu"]] == ["my_losses.py", "–", "ab" * 32]


def test_the_picture_draws_front_and_the_rest_apart():
    page = render(comparison())
    picture = re.search(r"<svg.*?</svg>", page, re.DOTALL).group()
    assert "ngdiff: 6" in picture
    assert picture.count("on the front") == 3
    assert "stroke-muted" in picture
    assert "stroke-reference" in picture
    names = re.findall(r"<text[^>]*>([^<]+)</text>", picture)
    assert {"ngdiff", "simnpo", "grad-ascent", "before"} <= set(names)


def test_nothing_measured_draws_nothing():
    assert "<svg" not in render(PAGES["empty"]())


def test_a_hostile_comparison_stays_text():
    page = render(poisoned())
    assert "<script" not in page
    assert "onerror=" not in re.sub(r">[^<]*<", "><", page)
    assert all(link.startswith(("#", "./")) and ":" not in link for link in parsed(page).links)
    assert "\u202e" not in page
    assert "<script" not in markdown(poisoned()).replace("\\<", "")


def test_in_a_browser(chromium, tmp_path):
    seen, console = browser.frames(chromium, tmp_path, {name: render(make()) for name, make in PAGES.items()})
    assert len(seen) == len(PAGES) * len(browser.WIDTHS)
    assert console == ""
    for name, frame in seen.items():
        assert not frame["ran"], name
        assert (frame["foreign"], frame["handlers"], frame["metas"], frame["styles"]) == (0, 0, 5, 1), frame
        assert (frame["fetched"], frame["styled"]) == (0, "1056px"), name
        assert frame["needed"] <= frame["width"], frame["wide"]
        assert frame["headings"] >= 3
        assert "report" in frame["title"].lower()


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_mean_shows_its_range_only_where_there_is_one(seeds):
    assert ("[4–8]" in markdown(comparison(seeds)).replace("\\", "")) == (seeds == 3)
