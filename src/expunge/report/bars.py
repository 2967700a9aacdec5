"""Bars with intervals: the metrics of a split, or the models of a leaderboard, in small pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from expunge.record import Metric, RunRecord, Stage
from expunge.report.components import Group
from expunge.report.curves import Panel
from expunge.report.svg import PALETTE, draw, styled, to_svg
from expunge.report.tables import stages
from expunge.report.text import label
from expunge.report.wording import MINUS, number, stage_titles

_WIDTH, _ROW, _FRAME = 330, 14, 58
_MOST_ROWS = 30
_ROLES: dict[Stage, str] = {"before": "retain", "after": "forget", "control": "control"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One value: whose it is, in which colour of the palette; hollow for what others published."""

    name: str
    metric: Metric | None
    role: str
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A label at the left with its bars beneath each other."""

    label: str
    bars: tuple[Bar, ...]


def component_panels(record: RunRecord, groups: Sequence[Group]) -> list[Panel]:
    """One picture per split, of its metrics between 0 and 1: a bar per model, a whisker per interval."""
    titles = stage_titles(record)
    panels = []
    for index, group in enumerate(groups):
        rows = [
            Row(
                component.name,
                tuple(
                    Bar(titles[stage], metric, _ROLES[stage])
                    for stage, metric in zip(stages(record), component.metrics, strict=True)
                ),
            )
            for component in group.rows
            if component.bounded
        ]
        if rows:
            panels.append(panel(f"bars-{index}", group.title, rows, (0.0, 1.0)))
    return panels


def panel(name: str, title: str, rows: Sequence[Row], span: tuple[float, float] | None = None) -> Panel:
    """Rows of bars under one axis.

    Args:
        name: Unique on the page.
        title: Of the picture.
        rows: At least one; beyond 30 the rest is left to the table.
        span: Ends of the axis; None: what the values need, 0 included.
    """
    rows = rows[:_MOST_ROWS]
    count = sum(len(row.bars) for row in rows) + len(rows) / 2
    with styled():
        figure = draw(_WIDTH, _FRAME + round(_ROW * count))
        axes = figure.axes[0]
        ticks = _bars(axes, rows)
        axes.set_yticks(ticks, [label(row.label, 26) for row in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=PALETTE["muted"], linewidth=0.8)
        if span is not None:
            axes.set_xlim(span[0], span[1] * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", MINUS)))
        axes.grid(axis="x", color=PALETTE["rule"], linewidth=0.6)
        axes.set_axisbelow(True)
        _legend(axes, rows)
        return Panel(title, "", to_svg(figure, name, title, _described(rows)))


def _bars(axes: Axes, rows: Sequence[Row]) -> list[float]:
    """Draw all bars; where the labels stand."""
    ticks, place = [], 0.0
    for row in rows:
        places = [place + i for i in range(len(row.bars))]
        ticks.append(sum(places) / len(places))
        for at, bar in zip(places, row.bars, strict=True):
            _draw(axes, at, bar)
        place = places[-1] + 1.5
    axes.set_ylim(-0.8, place - 0.7)
    return ticks


def _draw(axes: Axes, at: float, bar: Bar) -> None:
    if bar.metric is None or not math.isfinite(bar.metric.value):
        return
    colour = PALETTE[bar.role]
    look: dict[str, Any] = {"color": "none", "edgecolor": colour} if bar.hollow else {"color": colour}
    axes.barh(at, bar.metric.value, height=0.62, linewidth=0.9, **look)
    low, high = bar.metric.low, bar.metric.high
    if math.isfinite(low) and math.isfinite(high) and high > low:
        axes.plot([low, high], [at, at], color=PALETTE["ink"], linewidth=1, marker="|", markersize=4.5)


def _legend(axes: Axes, rows: Sequence[Row]) -> None:
    """Which colour is whose, where rows hold several bars."""
    names = {bar.name: bar.role for row in rows for bar in row.bars}
    if max(len(row.bars) for row in rows) < 2:
        return
    for name, role in names.items():
        axes.barh(0, 0, color=PALETTE[role], label=f" {label(name)}")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.98),
        ncols=3,
        borderaxespad=0,
        handlelength=1,
        handleheight=0.7,
    )


def _described(rows: Sequence[Row]) -> str:
    """Every number, for those who cannot see the picture."""
    return " ".join(
        f"{label(row.label, 60)}: "
        + ", ".join(f"{label(bar.name)} {number(bar.metric.value)}" for bar in row.bars if bar.metric)
        + "."
        for row in rows
    )
