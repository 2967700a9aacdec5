"""The picture of a comparison: forgetting against utility, one point per setting, the front drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from expunge.comparison_record import UNBOUNDED, Axis, Comparison, Setting, Spread
from expunge.report.svg import PALETTE, draw, styled, to_svg
from expunge.report.text import label
from expunge.report.wording import LEAK, MINUS, SPACE, value_text, words

WIDTH, HEIGHT = 400, 290
_OFFSETS = ((8, 6), (8, -13), (-8, 6), (-8, -13), (0, 11), (0, -19), (8, 18), (-8, 18), (8, -25), (-8, -25))
"""Where a name may stand from its point, the best place first."""


def pareto(comparison: Comparison) -> Markup | None:
    """Points of all measured settings and of the model before; None where nothing can be drawn."""
    shown = [s for s in comparison.settings if s.forget is not None and s.utility is not None]
    if not shown:
        return None
    with styled():
        figure = draw(WIDTH, HEIGHT)
        axes = figure.axes[0]
        _frame(axes, comparison, shown)
        _front(axes, comparison, shown)
        for setting in shown:
            _mark(axes, setting)
        start = _before(comparison)
        if start is not None:
            axes.plot(*start, "o", color=PALETTE["ink"], markerfacecolor="none", markersize=8)
        figure.draw_without_rendering()
        _names(axes, shown, start)
        return to_svg(figure, "pareto", "Forgetting against utility", _described(comparison, shown))


def title_of(setting: Setting) -> str:
    """A setting's name in a picture or a list."""
    varied = ", ".join(f"{key} {_value(value)}" for key, value in setting.varied.items())
    return f"{setting.method} ({varied})" if varied else setting.method


def axis_title(axis: Axis) -> str:
    """What an axis measures, and which way is better."""
    name = "exact answers" if axis.metric == LEAK and axis.split != "forget" else words(axis.metric).inline
    better = "less" if axis.better == "lower" else "more"
    return f"{name} on {axis.split} ({better} is better)"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _before(comparison: Comparison) -> tuple[float, float] | None:
    x, y = (
        comparison.before.get(axis.split, {}).get(axis.metric)
        for axis in (comparison.forget_axis, comparison.utility_axis)
    )
    return None if x is None or y is None else (x.value, y.value)


def _frame(axes: Axes, comparison: Comparison, shown: Sequence[Setting]) -> None:
    axes.set_xlabel(label(axis_title(comparison.forget_axis), 80))
    axes.set_ylabel(label(axis_title(comparison.utility_axis), 48))
    axes.margins(0.12)
    for axis, line, spreads in (
        (comparison.forget_axis, axes.xaxis, [s.forget for s in shown]),
        (comparison.utility_axis, axes.yaxis, [s.utility for s in shown]),
    ):
        if axis.metric in UNBOUNDED or not all(s.low >= 0 and s.high <= 1 for s in spreads if s):
            continue
        line.axes.set(**{"xlim" if line is axes.xaxis else "ylim": (-0.04, 1.08)})
        line.set_ticks([0, 0.25, 0.5, 0.75, 1])
        if words(axis.metric).kind == "share":
            line.set_major_formatter(PercentFormatter(1, symbol=f"{SPACE}%"))


def _front(axes: Axes, comparison: Comparison, shown: Sequence[Setting]) -> None:
    """The border of what the front dominates: a staircase from one edge of the reference to the other."""
    corner, best = comparison.reference, [s for s in shown if s.front]
    points = sorted((s.forget.mean, s.utility.mean) for s in best if s.forget and s.utility)
    if not points or corner is None:
        return
    # Sorted by the first cost, the second one falls; a step goes on at the level of the better point.
    points.sort(key=lambda point: comparison.forget_axis.cost(point[0]))
    line = [(points[0][0], corner[1])]
    for (x, y), following in zip(points, [*points[1:], (corner[0], points[-1][1])], strict=True):
        line += [(x, y), (following[0], y)]
    xs, ys = zip(*line, strict=True)
    axes.plot(xs, ys, color=PALETTE["reference"], linewidth=1.2, zorder=1)
    axes.fill(
        [*xs, corner[0]],
        [*ys, corner[1]],
        facecolor=PALETTE["reference"],
        alpha=0.07,
        linewidth=0,
        zorder=0,
    )


def _mark(axes: Axes, setting: Setting) -> None:
    assert setting.forget is not None
    assert setting.utility is not None
    colour = PALETTE["forget"] if setting.front else PALETTE["muted"]
    look: dict[str, Any] = {"color": colour, "zorder": 3 if setting.front else 2, "elinewidth": 0.9}
    look |= {"markersize": 7 if setting.front else 5, "marker": "o" if setting.whole else "X"}
    axes.errorbar(
        setting.forget.mean,
        setting.utility.mean,
        xerr=_whiskers(setting.forget),
        yerr=_whiskers(setting.utility),
        **look,
    )


def _whiskers(spread: Spread) -> list[list[float]]:
    return [[spread.mean - spread.low], [spread.high - spread.mean]]


def _names(axes: Axes, shown: Sequence[Setting], start: tuple[float, float] | None) -> None:
    """A name beside every point that has room for one: the front first, nothing over anything else."""
    points = [(s.forget.mean, s.utility.mean) for s in shown if s.forget and s.utility]
    entries = list(zip(shown, points, strict=True))
    taken = [_around(axes, point) for point in [*points, *([start] if start else [])]]
    if start:
        _name(axes, "before", start, taken, {"color": PALETTE["ink"]})
    for setting, point in sorted(entries, key=lambda entry: not entry[0].front):
        bold = {"color": PALETTE["forget"], "fontweight": "bold"}
        look = bold if setting.front else {"color": PALETTE["muted"]}
        _name(axes, label(title_of(setting), 34), point, taken, look)


def _around(axes: Axes, point: tuple[float, float]) -> Bbox:
    """The place that a marker takes, in pixels (72 to the inch: units of the view box)."""
    x, y = axes.transData.transform(point) / _scale(axes)
    return Bbox.from_extents(x - 4, y - 4, x + 4, y + 4)


def _scale(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.dpi / 72


def _name(axes: Axes, text: str, point: tuple[float, float], taken: list[Bbox], look: dict[str, Any]) -> None:
    x, y = axes.transData.transform(point) / _scale(axes)
    wide = (5.6 if "fontweight" in look else 5.1) * len(text)
    for dx, dy in _OFFSETS:
        left = x + dx - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
        box = Bbox.from_extents(left, y + dy, left + wide, y + dy + 9)
        inside = box.x0 > 30 and box.x1 < WIDTH - 2 and box.y0 > 28 and box.y1 < HEIGHT
        if inside and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            side = "right" if dx < 0 else "center" if dx == 0 else "left"
            axes.annotate(
                text, point, xytext=(dx, dy), textcoords="offset points", fontsize=9, ha=side, **look
            )
            return


def _described(comparison: Comparison, shown: Sequence[Setting]) -> str:
    axes = comparison.forget_axis, comparison.utility_axis
    said = []
    for setting in shown:
        pair = zip(axes, (setting.forget, setting.utility), strict=True)
        values = " and ".join(value_text(axis.metric, spread.mean) for axis, spread in pair if spread)
        said.append(f"{title_of(setting)}: {values}{', on the front' if setting.front else ''}.")
    names = " against ".join(f"{axis.metric} on {axis.split}" for axis in axes)
    return f"{names}. " + " ".join(said)


def spread_text(metric: str, spread: Spread | None) -> str:
    """A mean, with its least and largest value where these differ."""
    if spread is None:
        return "–"
    mean = value_text(metric, spread.mean)
    low, high = value_text(metric, spread.low), value_text(metric, spread.high)
    if low == high:
        return mean
    low = low.removesuffix(f"{SPACE}%")
    between = " to " if MINUS in low + high else "–"
    return f"{mean} [{low}{between}{high.removesuffix(f'{SPACE}%')}]"
