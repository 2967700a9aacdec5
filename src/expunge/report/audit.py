"""`audit.json` -> the page and the table of a terminal; nothing else is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from expunge.audit_record import (
    COLUMNS,
    AttackEntry,
    AuditRecord,
    Column,
    Outcome,
    Result,
    Word,
    Worst,
)
from expunge.record import Metric, write_atomically
from expunge.report import wording
from expunge.report.audit_pictures import bars, curves
from expunge.report.page import machine, page, subject
from expunge.report.spans import overlap
from expunge.report.text import clip, legible
from expunge.report.wording import ABSENT, LEAK, with_interval

_TONES: dict[Word, str] = {
    "erased": "yes",
    "suppressed": "partly",
    "not forgotten": "no",
    "undecided": "unknown",
}
_OUTCOMES: dict[Outcome, str] = {
    "within": "within",
    "exceeds": "exceeds",
    "blunt": "tells nothing",
    "unfinished": "unfinished",
    "unjudged": "no control",
}
_TITLES: dict[Column, str] = {
    "unlearned": "unlearned",
    "control": "control",
    "holdout": "never seen",
    "original": "original",
}
_CONTROLS = {
    "model": "a control model that never saw the forget records",
    "holdout": "holdout records, which the unlearned model never saw, in the place of a control model",
    "none": "nothing: there is neither a control model nor holdout records",
}
RULE = (
    "Erased: under every attack that tells something, the share of records that came back is within the 95 % "
    "interval of the control (membership attacks: they tell no more than with it). Suppressed: so it is "
    "under the training prompt, but some attack exceeds it. Not forgotten: the training prompt exceeds "
    "it already."
)


def write_page(record: AuditRecord, folder: Path) -> Path:
    """Write `report.html` into `folder` atomically."""
    return write_atomically(folder / "report.html", render(record))


def render(record: AuditRecord) -> str:
    """The page of an audit as one HTML document."""
    return page("audit.html.j2", _view(legible(record)))


def table(record: AuditRecord) -> Iterator[RenderableType]:
    """What a person reads in a terminal at the end of an audit."""
    columns = _columns(record)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in zip(
        _header(columns), ("left", *["right"] * len(columns), "left", "right"), strict=True
    ):
        grid.add_column(name, justify=side)  # type: ignore[arg-type]
    for entry in _rows(record):
        cells = (_share(entry.results.get(column)) for column in columns)
        outcome = _OUTCOMES[entry.judgement.outcome] if entry.judgement else entry.status
        grid.add_row(Text(entry.name), *map(Text, cells), Text(outcome), Text(_seconds(entry)))
    yield grid
    yield Text(f"\n{record.verdict.word.capitalize()}. {record.verdict.sentence}", style="bold")
    yield from (Text(f"· {reason}") for reason in record.verdict.reasons)
    yield from (Text(f"{entry.name}: {entry.why}") for entry in record.attacks if entry.why)
    yield from (Text(f"Note: {note}") for note in record.notes)


def _header(columns: Iterable[Column]) -> list[str]:
    return ["came back", *(_TITLES[column] for column in columns), "beside the control", "time"]


def _columns(record: AuditRecord) -> list[Column]:
    """Columns that some attack has a result in."""
    return [column for column in COLUMNS if any(column in entry.results for entry in record.attacks)]


def _rows(record: AuditRecord) -> list[AttackEntry]:
    """Every attack, and the worst case over them."""
    return [*record.attacks, *([record.best] if record.best else [])]


def _share(result: Result | None) -> str:
    return with_interval(LEAK, result.recovered) if result else ABSENT


def _seconds(entry: AttackEntry) -> str:
    total = sum(result.seconds for result in entry.results.values())
    return wording.duration(total) if entry.results and total else ""


# --- the page


def _view(record: AuditRecord) -> dict[str, Any]:
    columns = _columns(record)
    model = record.models.get("unlearned")
    facts = {
        "Compared with": record.control if record.control != "model" else "a control model",
        **({"Behind filters": ", ".join(one.name for one in record.filters)} if record.filters else {}),
        "Attacks": str(sum(entry.status == "done" for entry in record.attacks)),
        "Seed": str(record.seed),
        "Created": record.created,
    }
    return {
        "record": record,
        "title": "Audit report",
        "subject": subject(model.source) if model else "Model not recorded",
        "facts": list(facts.items()),
        "tone": _TONES[record.verdict.word],
        "rule": RULE,
        "against": _CONTROLS[record.control],
        "columns": [_TITLES[column] for column in columns],
        "rows": [_row(entry, columns) for entry in _rows(record)],
        "bars": bars(record),
        "curves": curves(record),
        "values": list(_values(record, columns)),
        "worst": [_worst(one) for one in record.worst],
        "details": [_detail(entry) for entry in record.attacks],
        "settings": [*wording.settings(record.configuration), *_filters(record)],
        "environment": list(machine(record.environment)),
        "costs": list(_costs(record)),
    }


def _filters(record: AuditRecord) -> Iterator[tuple[str, str]]:
    for one in record.filters:
        fields = ", ".join(f"{key} {value}" for key, value in wording.settings(one.configuration))
        yield f"filter {one.name}", fields


def _row(entry: AttackEntry, columns: Iterable[Column]) -> dict[str, Any]:
    judgement = entry.judgement
    return {
        "name": entry.name,
        "family": entry.family if entry.family != "none" else "",
        "cells": [
            {
                "column": _TITLES[column],
                "share": _share(result),
                "score": wording.number(result.score.value) if result else "",
            }
            for column in columns
            for result in [entry.results.get(column)]
        ],
        "outcome": _OUTCOMES[judgement.outcome] if judgement else entry.status,
        "exceeds": judgement is not None and judgement.outcome == "exceeds",
        "seconds": _seconds(entry),
    }


def _values(record: AuditRecord, columns: Iterable[Column]) -> Iterator[dict[str, Any]]:
    """Further numbers of the attacks, a row each."""
    shown = list(columns)
    for entry in record.attacks:
        names = dict.fromkeys(name for result in entry.results.values() for name in result.values)
        for name in names:
            found = [entry.results[c].values.get(name) if c in entry.results else None for c in shown]
            yield {"attack": entry.name, "name": name, "cells": [_number(metric) for metric in found]}


def _number(metric: Metric | None) -> str:
    return with_interval("", metric) if metric else ABSENT


def _worst(one: Worst) -> dict[str, Any]:
    answer = one.answer
    prompt, response, asked, said = map(clip, (one.prompt, one.response, answer.input, answer.output))
    return {
        "place": one.place,
        "prompt": prompt,
        "response": response,
        "attack": answer.attack,
        "input": asked,
        "pieces": overlap(one.response, said[0], one.prompt).pieces,
        "cut": said[1],
        "recovered": answer.recovered,
        "score": answer.score,
        "tries": answer.tries,
        "others": [name for name in one.attacks if name != answer.attack],
        "control": {True: "also from the control", False: "not from the control", None: ""}[one.control],
    }


def _told(result: Result) -> list[str]:
    """Notes on what an attack found on one model."""
    past = ["It went past the filters: its answers are those of the model behind them."]
    return [*result.notes, *(past if result.past_filters else [])]


def _detail(entry: AttackEntry) -> dict[str, Any]:
    notes = dict.fromkeys(
        f"{_TITLES[column]}: {note}" for column, result in entry.results.items() for note in _told(result)
    )
    rows = [("settings", ", ".join(f"{key} {value}" for key, value in wording.settings(entry.configuration)))]
    rows += [("announced", _announced(entry))]
    rows += [
        (f"seconds, {_TITLES[column]}", wording.number(result.seconds))
        for column, result in entry.results.items()
    ]
    if entry.judgement and entry.judgement.p_value is not None:
        rows += [("chance of so much more", wording.number(entry.judgement.p_value))]
    return {
        "name": entry.name,
        "line": entry.line,
        "said": entry.judgement.sentence if entry.judgement else entry.why,
        "notes": [*notes, *([entry.why] if entry.why and entry.judgement else [])],
        "rows": [(name, value) for name, value in rows if value],
    }


def _announced(entry: AttackEntry) -> str:
    """The cost that the attack named before it started, per model."""
    if entry.cost is None:
        return ""
    parts = {
        "read": entry.cost.forward_tokens,
        "differentiated": entry.cost.backward_tokens,
        "written": entry.cost.generated_tokens,
    }
    return ", ".join(f"{wording.whole(count)} tokens {what}" for what, count in parts.items() if count)


def _costs(record: AuditRecord) -> Iterator[tuple[str, str]]:
    for phase, seconds in record.timings.items():
        yield phase, wording.duration(seconds)
    yield "peak memory", wording.size(record.peak_memory_bytes)


__all__ = ["render", "table", "write_page"]
