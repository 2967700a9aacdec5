"""The pictures of an audit: recovery per attack, and recovery against budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from expunge.audit_record import COLUMNS, AttackEntry, AuditRecord, Column, Point
from expunge.report.bars import Bar, Row, panel
from expunge.report.curves import Panel
from expunge.report.svg import PALETTE, draw, styled, to_svg
from expunge.report.text import label
from expunge.report.wording import SPACE, percent

_ROLES: dict[Column, str] = {
    "unlearned": "forget",
    "control": "control",
    "holdout": "reference",
    "original": "retain",
}
_NAMES: dict[Column, str] = {
    "unlearned": "unlearned",
    "control": "control",
    "holdout": "never seen",
    "original": "original",
}
_PER_PICTURE = 12
_WIDTH, _HEIGHT = 330, 185


def bars(record: AuditRecord) -> list[Panel]:
    """Share recovered per attack, a bar per column; so many attacks to a picture."""
    entries = [*([record.best] if record.best else []), *record.attacks]
    rows = [_bars(entry) for entry in entries if entry.results]
    portions = [rows[i : i + _PER_PICTURE] for i in range(0, len(rows), _PER_PICTURE)]
    drawn = [
        panel(f"recovered-{i}", "Share of records that came back", part, (0.0, 1.0))
        for i, part in enumerate(portions)
    ]
    return [replace(drawn[0], caption=f"Whiskers: exact 95{SPACE}% intervals."), *drawn[1:]] if drawn else []


def _bars(entry: AttackEntry) -> Row:
    return Row(
        entry.name,
        tuple(
            Bar(_NAMES[column], entry.results[column].recovered, _ROLES[column])
            for column in COLUMNS
            if column in entry.results
        ),
    )


def curves(record: AuditRecord) -> list[Panel]:
    """Share recovered against the budget spent, for every attack that has a curve."""
    with styled():
        drawn = [_curve(entry, i) for i, entry in enumerate(record.attacks)]
    return [picture for picture in drawn if picture is not None]


def _curve(entry: AttackEntry, number: int) -> Panel | None:
    lines = {
        column: [point for point in entry.results[column].curve if math.isfinite(point.budget)]
        for column in COLUMNS
        if column in entry.results
    }
    lines = {column: points for column, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    axis = next(entry.results[column].axis for column in lines) or "budget"
    figure = draw(_WIDTH, _HEIGHT)
    axes = figure.axes[0]
    for column, points in lines.items():
        _line(axes, column, points)
    _finish(axes, axis, [point.budget for points in lines.values() for point in points])
    caption = f"Share of records that came back against {axis}. Shaded: exact 95{SPACE}% intervals."
    name = f"curve-{number}"
    return Panel(entry.name, caption, to_svg(figure, name, entry.name, f"{caption} {_described(lines)}"))


def _line(axes: Axes, column: Column, points: Sequence[Point]) -> None:
    colour, budgets = PALETTE[_ROLES[column]], [point.budget for point in points]
    axes.plot(
        budgets,
        [point.recovered.value for point in points],
        color=colour,
        marker="o",
        markersize=3.2,
        label=_NAMES[column],
    )
    low, high = ([getattr(point.recovered, end) for point in points] for end in ("low", "high"))
    axes.fill_between(budgets, low, high, color=colour, alpha=0.12, linewidth=0)


def _finish(axes: Axes, axis: str, budgets: Sequence[float]) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=f"{SPACE}%"))
    positive = [budget for budget in budgets if budget > 0]
    if len(positive) == len(budgets) and max(positive) / min(positive) > 50:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=all(b == round(b) for b in budgets)))
    axes.set_xlabel(label(axis, 48))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=4, borderaxespad=0, handlelength=1.6)


def _described(lines: dict[Column, list[Point]]) -> str:
    """Ends of every line, for those who cannot see the picture."""
    return " ".join(
        f"{_NAMES[column]}: {percent(points[0].recovered.value)} at {points[0].budget:g}, "
        f"{percent(points[-1].recovered.value)} at {points[-1].budget:g}."
        for column, points in lines.items()
    )
