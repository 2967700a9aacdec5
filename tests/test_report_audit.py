"""The page of an audit: verdict first, every number beside its control, escaped, in a real browser."""

from __future__ import annotations

import re

import pytest

import test_report_browser as browser
from expunge import intervals
from expunge.audit_record import (
    Answer,
    AttackEntry,
    AuditRecord,
    CostEntry,
    Point,
    Result,
    Untried,
    Worst,
)
from expunge.auditing.judgement import judge
from expunge.auditing.verdicts import verdict
from expunge.record import DataEntry, Metric, ModelEntry
from expunge.report.audit import render, table
from record_factory import HASH, INJECTIONS, map_strings, run_record

chromium = browser.chromium
CLOSED = {
    "audit",
    "model",
    "holdout",
    "none",
    "done",
    "skipped",
    "failed",
    "unlearned",
    "control",
    "original",
}
CLOSED |= {"erased", "suppressed", "not forgotten", "undecided"}
CLOSED |= {"within", "exceeds", "blunt", "unfinished", "unjudged"}


def result(hits: int, curve: bool = False) -> Result:
    flags = [i < hits for i in range(40)]
    points = [
        Point(budget=b, recovered=intervals.exact_share([i < hits * b / 50 for i in range(40)]))
        for b in (0, 10, 50)
    ]
    return Result(
        recovered=intervals.exact_share(flags),
        score=intervals.share([float(flag) for flag in flags]),
        curve=points if curve else [],
        axis="relearning steps",
        values={"spread": Metric(value=0.3, low=0.2, high=0.4, n=40)} if curve else {},
        notes=["Stopped nowhere."],
        tries=40,
        seconds=61.5,
    )


def entry(name: str, family: str, hits: int, *, curve: bool = False) -> AttackEntry:
    results = {"unlearned": result(hits, curve), "control": result(0, curve), "original": result(40, curve)}
    return AttackEntry(
        name=name,
        family=family,
        line=f"What {name} does.",
        configuration={"steps": 50},
        status="done",
        cost=CostEntry(forward_tokens=12_000, generated_tokens=300),
        results=results,
        judgement=judge(results, family),
    )


def audit(*, redacted: bool = False, relearned: int = 20) -> AuditRecord:
    attacks = [
        entry("prompt", "none", 0),
        entry("paraphrase", "input", 1),
        entry("relearn", "weights", relearned, curve=True),
        AttackEntry(name="gcg", family="input", line="", status="skipped", why="A library is missing."),
    ]
    best = entry("choose-best", "none", relearned)
    text = "" if redacted else "{}"
    worst = Worst(
        place="line 3",
        prompt=text.format("Where does Ada Ash live?"),
        response=text.format("12 Ash Street in Oakham"),
        answer=Answer(
            attack="relearn",
            input=text.format("30 steps on line 1"),
            output=text.format("She lives at 12 Ash Street in Oakham."),
            score=1.0,
            recovered=True,
            tries=3,
        ),
        attacks=["relearn", "paraphrase"],
        control=False,
    )
    return AuditRecord(
        expunge_version="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        configuration={"seconds": 120.0, "template": "none"},
        seed=3,
        redacted=redacted,
        control="model",
        verdict=verdict(attacks, best),
        attacks=attacks,
        best=best,
        worst=[worst],
        untried=[Untried(name="gcg", why="A library is missing.")],
        data={"forget": DataEntry(source="forget.jsonl", sha256=HASH, rows=40)},
        models={"unlearned": ModelEntry(source="out/model", sha256=HASH, parameters=9, dtype="float32")},
        environment=run_record().environment,
        timings={"load": 2.0, "attacks": 370.0},
        peak_memory_bytes=1 << 30,
        notes=["The original was found."],
    )


def poisoned() -> AuditRecord:
    """Every free string and key carries all injections."""
    payload = " ".join(INJECTIONS)

    def change(text: str) -> str:
        return text if text in CLOSED else f"{text} {payload}"

    dumped = audit().model_dump(mode="json")
    settings = {f"{key} {payload}": payload for key in dumped["configuration"]}
    changed = map_strings(dumped, change, keys=False)
    for one in changed["attacks"]:
        one["results"] = {
            column: found | {"values": {f"x {payload}": m for m in found["values"].values()}}
            for column, found in one["results"].items()
        }
    return AuditRecord.model_validate(changed | {"configuration": settings})


PAGES = {
    "suppressed": audit,
    "erased": lambda: audit(relearned=0),
    "redacted": lambda: audit(redacted=True),
    "empty": lambda: audit().model_copy(
        update={"attacks": [], "best": None, "worst": [], "untried": [], "data": {}, "models": {}}
    ),
    "poisoned": poisoned,
    "endless": lambda: audit().model_copy(
        update={"worst": [audit().worst[0].model_copy(update={"prompt": "x" * 2000, "response": "漢" * 900})]}
    ),
}


def words(page: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", re.sub("(?s)<style>.*?</style>", "", page)).split())


def test_the_verdict_comes_first_and_names_the_attack():
    page = words(render(audit()))
    assert "Suppressed The training prompt shows nothing, but relearn brings back more" in page
    assert page.index("Suppressed") < page.index("Recovery per attack") < page.index("What was not tried")
    assert "Erased Nothing beyond the control came back" in words(render(audit(relearned=0)))


def test_every_number_stands_beside_its_control_with_intervals():
    rows = re.findall(r'(?s)<tr role="row"[^>]*><th role="rowheader" scope="row".*?</tr>', render(audit()))
    found = {words(row).split()[0]: words(row) for row in reversed(rows)}
    assert "50 % [34–66]" in found["relearn"]
    assert "0 % [0–9]" in found["relearn"]
    assert "100 % [91–100]" in found["relearn"]
    assert "exceeds" in found["relearn"]
    assert "within" in found["prompt"]
    assert "choose-best" in found
    assert "skipped" in found["gcg"]


def test_curves_records_and_what_was_not_tried():
    page = render(audit())
    assert "Recovery against budget" in page
    assert "relearning steps" in page
    assert "unlearned: 0 % at 0, 50 % at 50." in words(page)
    assert "12 Ash Street in Oakham" in page
    assert "<mark>" in page
    assert "30 steps on line 1" in page
    assert "not from the control" in page
    assert "A library is missing." in page
    assert "12,000 tokens read" in page
    assert "spread" in page
    assert "3 min 04 s" in words(page).replace("\N{NO-BREAK SPACE}", " ")


def test_a_redacted_page_has_places_and_no_text():
    page = render(audit(redacted=True))
    assert "Redacted" in page
    assert "line 3" in page
    assert "Ash" not in words(page)


def test_the_terminal_has_the_same_numbers():
    from rich.console import Console

    console = Console(width=160, record=True)
    for part in table(audit()):
        console.print(part)
    text = console.export_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "Suppressed." in text
    assert "50 % [34–66]" in text
    assert "gcg: A library is missing." in text


@pytest.fixture(scope="module")
def seen(chromium, tmp_path_factory):
    pages = {name: render(make()) for name, make in PAGES.items()}
    return browser.frames(chromium, tmp_path_factory.mktemp("audit"), pages)


def test_nothing_runs_nothing_is_fetched_nothing_is_cut_off(seen):
    frames, console = seen
    assert len(frames) == len(PAGES) * len(browser.WIDTHS)
    for frame in frames.values():
        assert not frame["ran"], frame
        assert frame["title"].startswith("Audit report"), frame
        assert (frame["foreign"], frame["handlers"], frame["metas"], frame["styles"]) == (0, 0, 5, 1), frame
        assert frame["fetched"] == 0
        assert frame["styled"] == "1056px"
        assert frame["headings"] >= 4
    assert console == ""


def test_no_page_is_wider_than_its_window(seen):
    assert not {name: frame["wide"] for name, frame in seen[0].items() if frame["needed"] > frame["width"]}
