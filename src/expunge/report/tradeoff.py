"""The picture of the trade: what is still leaked against what is still known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from expunge.record import Metric, RunRecord, Stage
from expunge.report.svg import PALETTE, draw, styled, to_svg
from expunge.report.verdict import KEPT, Reference, metric, reference
from expunge.report.wording import percent, stage_titles


@dataclass(frozen=True, slots=True)
class Point:
    """One model: its leak on forget and its exact answers on retain."""

    stage: Stage
    title: str
    forget: Metric
    retain: Metric


_LOOKS: dict[Stage, dict[str, Any]] = {
    "before": {"marker": "o", "color": PALETTE["ink"], "markerfacecolor": "none"},
    "after": {"marker": "o", "color": PALETTE["forget"]},
    "control": {"marker": "D", "color": PALETTE["control"]},
}
# Where a label stands from its point: the run's two models keep apart even when the points do not.
_OFFSETS = {"before": (8, 9), "after": (8, -16), "control": (8, 9)}


def tradeoff(record: RunRecord) -> Markup | None:
    """Forget leak (x) and exact retain answers (y) of every model; None unless some model has both."""
    points = _points(record)
    if not points:
        return None
    with styled():
        figure = draw(330, 250)
        axes = figure.axes[0]
        _frame(axes)
        _target(axes, points, reference(record))
        _arrow(axes, points)
        for point in points:
            _mark(axes, point)
        return to_svg(figure, "tradeoff", "Forgetting against keeping", _described(points, reference(record)))


def _points(record: RunRecord) -> list[Point]:
    found = (
        (stage, title, metric(record, stage, "forget"), metric(record, stage, "retain"))
        for stage, title in stage_titles(record).items()
    )
    return [
        Point(stage, title, forget, retain) for stage, title, forget, retain in found if forget and retain
    ]


def _frame(axes: Axes) -> None:
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.13), xlabel="leak on forget (less is better)")
    axes.set_ylabel("exact answers on retain (more is better)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])


def _target(axes: Axes, points: list[Point], against: Reference | None) -> None:
    """The lines that bound what the verdict calls forgotten and kept."""
    retain = {point.stage: point.retain.value for point in points}
    if {"before", "after"} <= retain.keys():
        floor = KEPT * retain["before"]
        axes.axhline(floor, color=PALETTE["muted"], linewidth=0.9, linestyle=(0, (2, 2)))
        below = -10 if floor > 0.1 else 4
        _note(axes, f"{percent(KEPT)} of before", (0.62, floor), (0, below), PALETTE["muted"], ha="center")
    if against is not None:
        level, colour = against.metric, PALETTE["reference"]
        axes.axvspan(level.low, level.high, color=colour, alpha=0.13, linewidth=0)
        axes.axvline(level.value, color=colour, linewidth=1.2, linestyle=(0, (5, 2)))
        _note(
            axes,
            f"{against.name} {percent(level.value)}",
            (max(level.value, level.high), 0.0),
            (5, 3),
            colour,
        )


def _note(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], colour: str, **look: Any
) -> None:
    """Text beside a point, `offset` in units of the view box."""
    place: dict[str, Any] = {"xytext": offset, "textcoords": "offset points", "fontsize": 9}
    axes.annotate(text, at, color=colour, **(place | look))


def _arrow(axes: Axes, points: list[Point]) -> None:
    ends = {point.stage: (point.forget.value, point.retain.value) for point in points}
    if "before" in ends and "after" in ends:
        style = {"arrowstyle": "-|>", "color": PALETTE["muted"], "linewidth": 0.9, "shrinkA": 7, "shrinkB": 7}
        axes.annotate("", ends["after"], xytext=ends["before"], arrowprops=style)


def _mark(axes: Axes, point: Point) -> None:
    x, y, look = point.forget, point.retain, _LOOKS[point.stage]
    bars: dict[str, Any] = {"xerr": _whiskers(x), "yerr": _whiskers(y), "elinewidth": 1, "capsize": 2.5}
    axes.errorbar(x.value, y.value, markersize=7, **(bars | look))
    dx, dy = _OFFSETS[point.stage]
    left = x.value > 0.6
    if y.value < 0.1 and dy < 0:
        dy = 22
    name = {"ha": "right" if left else "left", "fontsize": 10, "fontweight": "bold"}
    _note(axes, point.title, (x.value, y.value), (-dx if left else dx, dy), look["color"], **name)


def _whiskers(found: Metric) -> list[list[float]]:
    return [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]


def _described(points: list[Point], against: Reference | None) -> str:
    said = [
        f"{point.title}: leak on forget {percent(point.forget.value)}, "
        f"exact answers on retain {percent(point.retain.value)}."
        for point in points
    ]
    level = f" Level of the {against.name}: {percent(against.metric.value)}." if against else ""
    return " ".join(said) + level
