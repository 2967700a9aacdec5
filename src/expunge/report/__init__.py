"""`record.json` -> `report.html`: one file, no request, no script.

Everything on the page comes from the record. Its strings are data of strangers (a model may write
anything): Jinja escapes them, `text.legible` writes out what would act invisibly, and a content security
policy that allows nothing but this page's own style sheet stands behind both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from expunge.record import RunRecord, write_atomically
from expunge.report import tables, wording
from expunge.report.bars import component_panels
from expunge.report.board import Published
from expunge.report.components import beside, groups, headlines
from expunge.report.curves import panels
from expunge.report.limits import not_tested
from expunge.report.page import machine, page, subject
from expunge.report.published import known
from expunge.report.requests import earlier_finding
from expunge.report.spans import SHORTEST
from expunge.report.text import legible
from expunge.report.tradeoff import tradeoff
from expunge.report.verdict import KEPT, agreement, findings, reference

__all__ = ["Published", "render", "write_report"]

_TITLES = {
    "run": "Unlearning report",
    "demo": "Unlearning demonstration",
    "finetune": "Fine-tuning report",
    "evaluate": "Evaluation report",
}


def write_report(record: RunRecord, folder: Path, published: Sequence[Published] | None = None) -> Path:
    """Write `report.html` into `folder` atomically and return its path."""
    return write_atomically(folder / "report.html", render(record, published))


def render(record: RunRecord, published: Sequence[Published] | None = None) -> str:
    """The page of a run as one HTML document.

    Args:
        record: Of the run.
        published: Results of others on the same benchmark, to stand beside its own; None takes those known.
    """
    record = RunRecord.model_validate_json(record.model_dump_json())  # as it stands in the file
    shown = legible(record)
    published = known(record) if published is None else published
    view = _view(shown) | _benchmark_view(shown, published)
    return page("report.html.j2", view)


def _view(record: RunRecord) -> dict[str, object]:
    """Everything that the template shows."""
    against = reference(record)
    alike, apart = agreement(record)
    return {
        "record": record,
        "title": _TITLES[record.kind],
        "subject": _subject(record),
        "facts": _facts(record),
        "findings": (*findings(record), *earlier_finding(record)),
        "against": against.name if against else None,
        "alike": alike,
        "apart": apart,
        "kept_share": wording.percent(KEPT),
        "trade": tradeoff(record),
        "interval_method": wording.INTERVALS,
        "metrics": tables.metric_tables(record),
        "stages": [wording.stage_titles(record)[stage] for stage in tables.stages(record)],
        "samples": tables.sample_groups(record),
        "shortest": SHORTEST,
        "limits": not_tested(record),
        "course": tables.course(record),
        "panels": panels(record),
        "settings": [
            *wording.settings(record.configuration),
            *((f"code of {name}", sha256[:16]) for name, sha256 in record.code.items()),
        ],
        "environment": list(machine(record.environment)),
        "costs": list(_costs(record)),
    }


def _benchmark_view(record: RunRecord, published: Sequence[Published]) -> dict[str, object]:
    """What a benchmark's page shows in the place of the verdict on the user's own sets."""
    if not wording.is_benchmark(record):
        return {"benchmark": False, "published": None}
    found = groups(record)
    return {
        "benchmark": True,
        "headlines": headlines(record),
        "groups": found,
        "bars": component_panels(record, found),
        "meanings": list(
            {row.name: row.meaning for group in found for row in group.rows if row.meaning}.items()
        ),
        "published": beside(record, published),
        "findings": (),
        "alike": [],
        "apart": [],
        "trade": None,
    }


def _subject(record: RunRecord) -> str:
    model = record.models.get("before") or next(iter(record.models.values()), None)
    if model is None:
        return "Model not recorded"
    return subject(model.source)


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    benchmark = record.configuration.get("benchmark")
    facts = [("Benchmark", benchmark if isinstance(benchmark, str) else ""), ("Method", record.method or "")]
    facts += [("Seed", str(record.seed)), ("Created", record.created)]
    return [(name, value) for name, value in facts if value]


def _costs(record: RunRecord) -> Iterable[tuple[str, str]]:
    for phase, seconds in record.timings.items():
        yield phase, wording.duration(seconds)
    for stage in tables.stages(record):
        found = record.evaluations[stage]
        tokens = f"{found.scored_tokens:,} tokens scored, {found.generated_tokens:,} generated"
        yield f"evaluation {stage}", f"{wording.duration(found.seconds)}; {tokens}"
    yield (
        "peak memory",
        wording.size(record.peak_memory_bytes) if record.peak_memory_bytes else "not measured",
    )
