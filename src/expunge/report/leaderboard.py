"""Many records -> one page: every model's numbers side by side, each a link to where it was measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from matplotlib.ticker import MaxNLocator

from expunge.benchmarks.series import Series
from expunge.errors import UsageError
from expunge.record import Metric, RunRecord, Stage, read_record, write_atomically
from expunge.report import wording
from expunge.report.bars import Bar, Row, panel
from expunge.report.board import Board, Key, Model, Published, board, column
from expunge.report.components import bounded
from expunge.report.curves import Panel
from expunge.report.page import page
from expunge.report.published import known
from expunge.report.svg import PALETTE, draw, styled, to_svg
from expunge.report.tables import stages
from expunge.report.text import legible, visible
from expunge.report.wording import ALL, SPLITS, number, split_title

_MOST_PANELS = 8
_NOTES: dict[Stage, str] = {"before": "before", "after": "", "control": "reference"}
_CAPTIONS = {
    "size": "By the size of the forget set",
    "request": "By the number of removal requests so far",
}


@dataclass(frozen=True, slots=True)
class Entrant:
    """One record as the page knows it: its name, the address of its own page, and what it holds."""

    name: str
    page: str
    record: RunRecord


def write_leaderboard(
    folders: Sequence[Path],
    output: Path,
    *,
    published: Sequence[Published] | None = None,
    series: Series | None = None,
) -> Path:
    """Write one page about several output folders, and the page of each folder again: links lead there.

    Args:
        folders: Output folders of finished runs, two at least, in the order in which they shall stand.
        output: The HTML file.
        published: Results of others on the same benchmark; None takes those known.
        series: The same runs as a series, to be drawn as curves.

    Raises:
        UsageError: There are fewer than two folders, one stands twice, or one holds no evaluated record.
    """
    from expunge.report import write_report

    if len(folders) < 2:
        raise UsageError(f"A leaderboard must have at least two run folders; got {len(folders)}. Name more.")
    records = [read_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        if not record.evaluations:
            raise UsageError(f"The record of {folder} must hold an evaluation; it holds none. Leave it out.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("A run folder must be named once; one stands twice. Leave it out.")
    pages = [write_report(record, home, published) for record, home in zip(records, folders, strict=True)]
    entrants = [
        Entrant(name, _address(page, output), record)
        for name, page, record in zip(_names(folders), pages, records, strict=True)
    ]
    beside = known(records[0]) if published is None else published
    return write_atomically(output, render_leaderboard(entrants, beside, series))


def render_leaderboard(
    entrants: Sequence[Entrant], published: Sequence[Published] = (), series: Series | None = None
) -> str:
    """The page as one HTML document."""
    shown = [Entrant(visible(one.name), one.page, legible(one.record)) for one in entrants]
    models = list(_models(shown))
    keys = _keys(models)
    boards = [
        board(split_title(split), [key for key in keys if key[0] == split], models, published)
        for split in dict.fromkeys(split for split, _ in keys)
    ]
    view = {
        "title": "Leaderboard",
        "benchmarks": _benchmarks(shown),
        "count": len(shown),
        "cautions": list(_cautions(shown)),
        "boards": boards,
        "sources": _sources(boards),
        "panels": _panels(models, keys, published),
        "curves": _curves(series, keys) if series else [],
        "order": _CAPTIONS[series.axis] if series else "",
        "interval_method": wording.INTERVALS,
        "entrants": [(one, _model_hash(one.record)) for one in shown],
    }
    return page("leaderboard.html.j2", view)


def _address(target: Path, output: Path) -> str:
    """A relative link from the page to another file; quoted, so that no name can be anything else."""
    return quote(os.path.relpath(target.resolve(), output.resolve().parent))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _models(entrants: Sequence[Entrant]) -> Iterator[Model]:
    """Every model that was measured, one that several records share (a reference, the original) once."""
    others: dict[str, Model] = {}
    for one in entrants:
        main: Stage = "after" if "after" in one.record.evaluations else stages(one.record)[0]
        yield Model(one.name, "", one.record.evaluations[main].splits, one.page)
        for stage in stages(one.record):
            if stage != main:
                entry = one.record.models.get(stage)
                of = entry.sha256 if entry else f"{one.name} {stage}"
                evaluation = one.record.evaluations[stage]
                others.setdefault(of, Model(_NOTES[stage], f"of {one.name}", evaluation.splits, one.page))
    yield from others.values()


def _keys(models: Sequence[Model]) -> list[Key]:
    """Every metric of every model, aggregates first."""
    found = dict.fromkeys((split, name) for m in models for split, row in m.splits.items() for name in row)
    splits = list(dict.fromkeys(split for split, _ in found))
    order = [split for split in (ALL, *SPLITS) if split in splits]
    order += [split for split in splits if split not in order]
    return [key for split in order for key in found if key[0] == split]


def _panels(models: Sequence[Model], keys: Sequence[Key], published: Sequence[Published]) -> list[Panel]:
    """Bars of the aggregates over all models; without aggregates, of the first metric of each split."""
    chosen = [key for key in keys if key[0] == ALL]
    chosen = chosen or [next(k for k in keys if k[0] == split) for split in dict.fromkeys(s for s, _ in keys)]
    found = []
    for index, (split, name) in enumerate(chosen[:_MOST_PANELS]):
        metrics = [model.splits.get(split, {}).get(name) for model in models]
        rows = [
            Row(f"{model.name} {model.note}".strip(), (Bar(model.name, metric, _role(model)),))
            for model, metric in zip(models, metrics, strict=True)
            if metric
        ]
        for row in published:
            if (value := row.values.get(f"{split}/{name}")) is not None:
                stated = Metric(value=value, low=value, high=value, n=0)
                rows.append(Row(visible(row.name), (Bar(row.name, stated, "muted", hollow=True),)))
        span = (0.0, 1.0) if bounded(name, metrics) else None
        found.append(panel(f"board-{index}", column(split, name), rows, span))
    return found


def _role(model: Model) -> str:
    return "forget" if not model.note else "control" if model.name == _NOTES["control"] else "retain"


def _curves(series: Series, keys: Sequence[Key]) -> list[Panel]:
    """One small picture per metric that at least two points of the series have."""
    drawn: list[Panel] = []
    for split, name in keys:
        points = series.values(split, name)
        if len(points) > 1 and len(drawn) < _MOST_PANELS:
            drawn.append(_curve(f"series-{len(drawn)}", column(split, name), series, points))
    return drawn


def _curve(ident: str, title: str, series: Series, points: Sequence[tuple[float, Metric]]) -> Panel:
    at, metrics = [place for place, _ in points], [metric for _, metric in points]
    with styled():
        figure = draw(330, 185)
        axes = figure.axes[0]
        values = [metric.value for metric in metrics]
        whiskers = [[m.value - m.low for m in metrics], [m.high - m.value for m in metrics]]
        axes.errorbar(
            at, values, yerr=whiskers, color=PALETTE["forget"], marker="o", markersize=4, capsize=2.5
        )
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("rows to forget" if series.axis == "size" else "request")
        said = " ".join(f"At {number(place)}: {number(m.value)}." for place, m in points)
        return Panel(title, "", to_svg(figure, ident, title, said))


def _benchmarks(entrants: Sequence[Entrant]) -> str:
    found = dict.fromkeys(str(one.record.configuration.get("benchmark") or "") for one in entrants)
    return ", ".join(name for name in found if name)


def _cautions(entrants: Sequence[Entrant]) -> Iterator[str]:
    """What keeps numbers in one column from being comparable."""
    first = entrants[0]
    for one in entrants[1:]:
        differing = [
            name
            for name in one.record.data.keys() & first.record.data.keys()
            if one.record.data[name].sha256 != first.record.data[name].sha256
        ]
        if differing:
            sets = ", ".join(sorted(differing))
            yield f"{one.name} was measured on other rows than {first.name}: {sets}."
    for title, found in (
        ("benchmark", {str(one.record.configuration.get("benchmark")) for one in entrants}),
        ("version of expunge", {one.record.expunge_version for one in entrants}),
    ):
        if len(found) > 1:
            yield f"The records differ in {title}: {', '.join(sorted(found))}."


def _sources(boards: Sequence[Board]) -> list[str]:
    return list(dict.fromkeys(source for one in boards for source in one.sources))


def _model_hash(record: RunRecord) -> str:
    entry = record.models.get("after") or next(iter(record.models.values()), None)
    return entry.sha256 if entry else "not recorded"
