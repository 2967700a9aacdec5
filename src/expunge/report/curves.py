"""The course of a run in small pictures that share the step axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from expunge.record import Probe, RunRecord, Step
from expunge.report.svg import PALETTE, draw, styled, to_svg
from expunge.report.text import label
from expunge.report.wording import MINUS, number, power

Scale = Literal["linear", "log", "signed"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture with the words beside it."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Line:
    """What was measured of one thing: at which steps, and what; NaN leaves a gap."""

    steps: list[int]
    values: list[float]


Lines = dict[str, Line]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a step of the history says about each objective, and how it is drawn."""

    name: str
    title: str
    caption: str
    read: Callable[[Step], Mapping[str, float]]
    scale: Scale = "linear"
    stacked: bool = False


QUANTITIES = (
    Quantity(
        "losses",
        "Objectives",
        "The value of each objective, in the sign that the run minimises.",
        lambda step: step.losses,
        stacked=True,
    ),
    Quantity(
        "norms",
        "Gradient norms",
        "The length of each objective's gradient; logarithmic.",
        lambda step: step.gradient_norms,
        "log",
    ),
    Quantity(
        "cosines",
        "Do the objectives conflict?",
        "Cosine between the objectives' gradients: below 0, what helps one hurts the other.",
        lambda step: {pair.replace(",", " · "): value for pair, value in step.cosines.items()},
        "signed",
    ),
    Quantity(
        "updates",
        "What the applied update did",
        "Cosine between each gradient and the change that was applied: above 0, that objective falls.",
        lambda step: step.update_cosines,
        "signed",
    ),
    Quantity(
        "weights",
        "Weights of the objectives",
        "Each objective's weight in the combined gradient; logarithmic, so that a weight of 0 leaves a gap.",
        lambda step: step.weights,
        "log",
    ),
    Quantity(
        "rate",
        "Step size η",
        "The learning rate that each step was taken with; logarithmic.",
        lambda step: {"η": step.learning_rate},
        "log",
    ),
)

_ROLES = {"forget": "forget", "retain": "retain"} | dict.fromkeys(
    ("holdout", "synthetic", "swap"), "reference"
)
_NEVER_SEEN = {
    "holdout": "records never seen",
    "synthetic": "a synthetic holdout",
    "swap": "swapped responses",
}
_SPARE = ("extra", "control", "reference", "muted", "ink")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
_DOTTED, _DASHED = (0, (1, 2)), (0, (4, 2))
_DRAWABLE = 1e30
_MOST_LINES = 8
_WIDTH, _HEIGHT = 330, 185


def panels(record: RunRecord) -> list[Panel]:
    """Every picture that the record has numbers for."""
    with styled():
        drawn = [_of_history(record, quantity) for quantity in QUANTITIES]
        drawn += [_of_probes(record), _of_checks(record)]
    return [panel for panel in drawn if panel is not None]


def _of_history(record: RunRecord, quantity: Quantity) -> Panel | None:
    """One quantity over all steps: all lines in one plot, or each in its own on its own scale."""
    rows = [(step.step, quantity.read(step)) for step in record.history]
    names = list(dict.fromkeys(name for _, row in rows for name in row))[:_MOST_LINES]
    lines = {name: _line([(step, row[name]) for step, row in rows if name in row]) for name in names}
    if _empty(lines):
        return None
    split: list[Lines] = [{name: line} for name, line in lines.items()] if quantity.stacked else [lines]
    figure = draw(_WIDTH, 45 + 70 * len(split) if quantity.stacked else _HEIGHT, len(split))
    for index, (axes, shown) in enumerate(zip(figure.axes, split, strict=True)):
        _plot(axes, shown, index, dense=len(rows) // 2)
        _finish(axes, record, quantity.scale, legend=len(lines) > 1)
    figure.axes[-1].set_xlabel("step")
    described = f"{quantity.caption} {_ends(lines)}"
    return Panel(quantity.title, quantity.caption, to_svg(figure, quantity.name, quantity.title, described))


def _of_probes(record: RunRecord) -> Panel | None:
    """The retain loss as the budget and the step size rule measured it."""
    budget = [probe for probe in record.probes if probe.slope is None]
    rule = [probe for probe in record.probes if probe.slope is not None]
    lines = {"budget": _losses(budget), "step size rule": _losses(rule)}
    if _empty(lines):
        return None
    title = "Retain loss at the probes"
    caption = "Retain rows in full precision. Whiskers: two standard errors; dotted: the first reading."
    figure = draw(_WIDTH, _HEIGHT)
    axes = figure.axes[0]
    _whiskers(axes, budget, label="budget", marker="s", linestyle="-")
    _whiskers(axes, rule, label="step size rule", marker="o", linestyle="none", markerfacecolor="none")
    axes.axhline(record.probes[0].retain_loss, color=PALETTE["muted"], linewidth=0.9, linestyle=_DOTTED)
    _finish(axes, record, "linear", legend=True)
    axes.set(xlabel="step", ylabel="nats per token")
    return Panel(title, caption, to_svg(figure, "probes", title, f"{caption} {_ends(lines)}"))


def _losses(probes: Sequence[Probe]) -> Line:
    return _line([(probe.step, probe.retain_loss) for probe in probes])


def _whiskers(axes: Axes, probes: Sequence[Probe], **look: Any) -> None:
    if not probes:
        return
    errors = [_drawable(probe.standard_error) for probe in probes]
    axes.errorbar(
        [probe.step for probe in probes],
        _losses(probes).values,
        yerr=[2 * abs(error) if math.isfinite(error) else 0.0 for error in errors],
        color=PALETTE["retain"],
        markersize=3.5,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        **look,
    )


def _of_checks(record: RunRecord) -> Panel | None:
    """Forget against what was never seen, at each look."""
    kinds = {check.control for check in record.checks}
    lines = {"forget": _line([(check.step, check.forget_nll) for check in record.checks])}
    for kind in sorted(kinds):
        lines[kind] = _line(
            [(check.step, check.control_nll) for check in record.checks if check.control == kind]
        )
    if _empty(lines):
        return None
    title = "Forget against " + next(words for kind, words in _NEVER_SEEN.items() if kind in kinds)
    caption = "Negative log-likelihood of the responses at each check; the run may stop when the lines meet."
    if any(check.partial for check in record.checks):
        caption += " Most checks read some of the forget records, and speak for all."
    figure = draw(_WIDTH, _HEIGHT)
    axes = figure.axes[0]
    _plot(axes, lines)
    _finish(axes, record, "linear", legend=True)
    axes.set(xlabel="step", ylabel="nats per token")
    return Panel(title, caption, to_svg(figure, "checks", title, f"{caption} {_ends(lines)}"))


def _line(measured: Sequence[tuple[int, float]]) -> Line:
    return Line([step for step, _ in measured], [_drawable(value) for _, value in measured])


def _drawable(value: float) -> float:
    """The value, or NaN when it is too large for an axis."""
    return value if abs(value) < _DRAWABLE else math.nan


def _empty(lines: Lines) -> bool:
    return not any(math.isfinite(value) for line in lines.values() for value in line.values)


def _plot(axes: Axes, lines: Lines, first: int = 0, *, dense: int = 30) -> None:
    """Draw the lines; one with fewer points than `dense` shows where they are."""
    spare = iter(_SPARE * 2)
    for index, (name, line) in enumerate(lines.items(), first):
        role = _ROLES.get(name) or (next(spare) if len(lines) > 1 else "ink")
        axes.plot(
            line.steps,
            line.values,
            color=PALETTE[role],
            linestyle=_DASHES[index % len(_DASHES)],
            label=_legend_name(name),
            marker="o" if len(line.steps) < max(12, dense) else None,
            markersize=3.2,
        )


def _legend_name(name: str) -> str:
    """A legend leaves out what starts with an underscore; a space before it keeps it in."""
    text = label(name)
    return f" {text}" if text.startswith("_") else text


def _finish(axes: Axes, record: RunRecord, scale: Scale, *, legend: bool) -> None:
    """Legend, scale, ticks, and the marks that all pictures share."""
    if legend:
        names = [text for line in axes.lines if not (text := str(line.get_label())).startswith("_")]
        columns = 3 if max(map(len, names), default=0) <= 14 else 1
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=columns, borderaxespad=0, handlelength=2.6
        )
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", MINUS)))
    if scale == "log":
        _logarithmic(axes)
    if scale == "signed":
        reach = 1.1 * max([0.1, *map(abs, _values(axes))])
        axes.set_ylim(-reach, reach)
        axes.axhline(0, color=PALETTE["muted"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _marks(axes, record)


def _values(axes: Axes) -> list[float]:
    """The finite values that were drawn."""
    drawn = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata(), dtype=float)]
    return [value for value in drawn if math.isfinite(value)]


def _logarithmic(axes: Axes) -> None:
    values = [value for value in _values(axes) if value > 1 / _DRAWABLE]
    if not values:
        return
    low, high = min(values), max(values)
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(low / 2, high * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0,), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _log_tick(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _log_tick(value: float) -> str:
    return f"{value:g}" if 1e-2 <= value < 1e4 else power(value)


def _marks(axes: Axes, record: RunRecord) -> None:
    """Repair steps as bands, probes as ticks at the foot, the end and the restored step as upright lines."""
    for first, last in _stretches([step.step for step in record.history if step.repair]):
        axes.axvspan(first - 0.5, last + 0.5, color=PALETTE["shade"], linewidth=0, zorder=0)
    probes = [probe.step for probe in record.probes]
    foot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": "none"}
    axes.plot(probes, [0.0] * len(probes), marker="|", markersize=5, color=PALETTE["muted"], **foot)
    if record.stop is not None:
        axes.axvline(record.stop.step, color=PALETTE["ink"], linewidth=0.9, linestyle=_DASHED)
        if record.stop.restored_step is not None:
            axes.axvline(record.stop.restored_step, color=PALETTE["ink"], linewidth=0.9, linestyle=_DOTTED)


def _stretches(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive steps as (first, last)."""
    stretches: list[tuple[int, int]] = []
    for step in sorted(set(steps)):
        if stretches and step == stretches[-1][1] + 1:
            stretches[-1] = (stretches[-1][0], step)
        else:
            stretches.append((step, step))
    return stretches


def _ends(lines: Lines) -> str:
    """First and last value of every line, for those who cannot see the picture."""
    parts = []
    for name, line in lines.items():
        seen = [value for value in line.values if math.isfinite(value)]
        if seen:
            parts.append(f"{label(name)}: from {number(seen[0])} to {number(seen[-1])}.")
    return " ".join(parts)
