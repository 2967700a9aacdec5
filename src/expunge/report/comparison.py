"""`comparison.json` -> the page, the table of a terminal, the table of a document; nothing else is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from expunge.comparison_record import Comparison, Setting, Status, TrialEntry
from expunge.record import write_atomically
from expunge.report import wording
from expunge.report.page import machine, page, subject
from expunge.report.pareto import axis_title, pareto, spread_text, title_of
from expunge.report.text import legible

DISTANCE = "NLL beyond unseen"
"""Column: forget NLL after unlearning minus the holdout's before it, in nats per token."""

_STATUS: dict[Status, str] = {
    "pending": "not run yet",
    "interrupted": "interrupted",
    "done": "ended",
    "diverged": "diverged, no model",
    "failed": "failed",
}


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html` into `folder` atomically and return its path."""
    return write_atomically(folder / "report.html", render(comparison))


def render(comparison: Comparison) -> str:
    """The page of a comparison as one HTML document."""
    return page("comparison.html.j2", _view(legible(comparison)))


def table(comparison: Comparison) -> Iterator[RenderableType]:
    """What a person reads in a terminal at the end of a comparison."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in zip(_columns(comparison), ("left", *["right"] * 6, "left"), strict=True):
        grid.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in _rows(comparison):
        grid.add_row(*(Text(cell) for cell in row))
    yield grid
    yield Text(f"\n* on the front. {_area_words(comparison)}")
    for trial in comparison.trials:
        if trial.status in ("failed", "diverged"):
            yield Text(f"{trial.name}: {_outcome(trial)}")
    for note in comparison.notes:
        yield Text(f"Note: {note}")
    yield Text(_disk(comparison))


def markdown(comparison: Comparison) -> str:
    """The same as a table for a document, made from the records alone."""
    columns, rows = _columns(comparison), [list(map(_cell, row)) for row in _rows(comparison)]
    lines = [columns, ["---", *["---:"] * 6, "---"], *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "".join(f"\n\n{_cell(note)}" for note in comparison.notes)
    return f"{text}\n\n\\* on the front. {_area_words(comparison)}{notes}\n"


def _cell(text: str) -> str:
    """Text that stays inside its cell and means nothing to Markdown."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|`*_[]<>&" else c for c in line)


def _columns(comparison: Comparison) -> list[str]:
    x, y = comparison.forget_axis, comparison.utility_axis
    up_down = {"lower": "↓", "higher": "↑"}
    names = [f"{axis.split} {axis.metric} {up_down[axis.better]}" for axis in (x, y)]
    return ["method", *names, DISTANCE, "hypervolume ↑", "steps", "time", "ended"]


def _rows(comparison: Comparison) -> Iterator[list[str]]:
    axes = comparison.forget_axis, comparison.utility_axis
    areas = {entry.method: entry.hypervolume for entry in comparison.methods}
    before = [comparison.before.get(axis.split, {}).get(axis.metric) for axis in axes]
    if any(before):
        pairs = zip(axes, before, strict=True)
        yield ["before", *(wording.value_text(a.metric, m.value) if m else "–" for a, m in pairs), *[""] * 5]
    for setting in comparison.settings:
        area = areas.pop(setting.method, None)
        yield [
            f"{title_of(setting)}{' *' if setting.front else ''}",
            spread_text(axes[0].metric, setting.forget),
            spread_text(axes[1].metric, setting.utility),
            spread_text("", setting.distance),
            "" if area is None else f"{area:.3f}",
            wording.whole(round(setting.steps.mean)) if setting.steps else "–",
            wording.duration(setting.seconds.mean) if setting.seconds else "–",
            _ends(comparison, setting),
        ]


def _ends(comparison: Comparison, setting: Setting) -> str:
    """How the trials of a setting ended, with how many of each; and the step whose state was returned."""
    ends = [_end(trial) for trial in comparison.of(setting)]
    counts = {end: ends.count(end) for end in dict.fromkeys(ends)}
    if len(ends) == 1:
        return ends[0]
    return ", ".join(f"{count}× {end}" for end, count in counts.items())


def _end(trial: TrialEntry) -> str:
    if trial.status != "done" or trial.stop is None:
        return _STATUS[trial.status]
    back = trial.stop.restored_step
    return trial.stop.reason if back is None else f"{trial.stop.reason}, back at {back}"


def _outcome(trial: TrialEntry) -> str:
    """Why a trial ended, in a sentence."""
    if trial.error:
        return f"{_STATUS[trial.status]}: {trial.error}"
    return trial.stop.sentence if trial.stop else _STATUS[trial.status]


def _area_words(comparison: Comparison) -> str:
    if comparison.reference is None:
        return "No hypervolume: nothing was measured on both axes."
    axes = comparison.forget_axis, comparison.utility_axis
    pairs = zip(axes, comparison.reference, strict=True)
    corner = ", ".join(f"{axis.name} = {value:g}" for axis, value in pairs)
    return (
        f"Hypervolume: the area that the method's settings dominate, up to the worst corner ({corner}). "
        "Means over seeds; in brackets the least and the largest."
    )


def _disk(comparison: Comparison) -> str:
    kept = "models are kept" if comparison.models_kept else "models were removed after their evaluation"
    return f"The folder takes {wording.size(comparison.disk_bytes)}; {kept}."


def _view(comparison: Comparison) -> dict[str, Any]:
    """Everything that the template shows."""
    seeds = sorted({trial.seed for trial in comparison.trials})
    facts = {
        "Benchmark": comparison.benchmark,
        "Options": ", ".join(f"{key} {value}" for key, value in comparison.options.items()),
        "Reference": subject(comparison.control) if comparison.control else "",
        "Methods": str(len({trial.method for trial in comparison.trials})),
        "Seeds": ", ".join(map(str, seeds)),
        "Trials": str(len(comparison.trials)),
        "Created": comparison.created,
    }
    return {
        "comparison": comparison,
        "title": "Comparison report",
        "subject": subject(comparison.source),
        "facts": [(name, value) for name, value in facts.items() if value],
        "picture": pareto(comparison),
        "axes": [axis_title(comparison.forget_axis), axis_title(comparison.utility_axis)],
        "columns": _columns(comparison),
        "rows": list(_view_rows(comparison)),
        "area_words": _area_words(comparison),
        "front": [title_of(setting) for setting in comparison.settings if setting.front],
        "unsound": [title_of(s) for s in comparison.settings if not s.whole and s.forget],
        "trials": list(_trials(comparison)),
        "distance": DISTANCE,
        "distance_known": any(setting.distance for setting in comparison.settings),
        "code": sorted({(trial.method, *item) for trial in comparison.trials for item in trial.code.items()}),
        "disk": _disk(comparison),
        "machine": list(machine(comparison.environment)) if comparison.environment else [],
    }


def _view_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    fronts = {title_of(setting): setting.front for setting in comparison.settings}
    for cells in _rows(comparison):
        name = cells[0].removesuffix(" *")
        yield {"name": name, "cells": cells[1:], "front": fronts.get(name, False)}


def _trials(comparison: Comparison) -> Iterable[dict[str, Any]]:
    axes = comparison.forget_axis, comparison.utility_axis
    for trial in comparison.trials:
        values = [trial.splits.get(axis.split, {}).get(axis.metric) for axis in axes]
        pairs = zip(axes, values, strict=True)
        yield {
            "name": trial.name,
            "linked": trial.status in ("done", "diverged", "interrupted"),
            "values": [wording.with_interval(a.metric, m) if m else wording.ABSENT for a, m in pairs],
            "steps": wording.whole(trial.steps) if trial.stop else wording.ABSENT,
            "time": wording.duration(trial.seconds) if trial.stop else wording.ABSENT,
            "end": _end(trial),
            "why": _outcome(trial) if trial.stop or trial.error else "",
        }
