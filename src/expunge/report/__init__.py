"""`record.json` -> `report.html`: one file, no request, no script.

Everything on the page comes from the record. Its strings are data of strangers (a model may write
anything): Jinja escapes them, `text.legible` writes out what would act invisibly, and a content security
policy that allows nothing but this page's own style sheet stands behind both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from expunge.record import RunRecord, write_atomically
from expunge.report import tables, wording
from expunge.report.curves import panels
from expunge.report.limits import not_tested
from expunge.report.page import environment, machine, sealed, subject
from expunge.report.spans import SHORTEST
from expunge.report.text import legible
from expunge.report.tradeoff import tradeoff
from expunge.report.verdict import KEPT, agreement, findings, reference

__all__ = ["render", "write_report"]

_TITLES = {
    "run": "Unlearning report",
    "demo": "Unlearning demonstration",
    "finetune": "Fine-tuning report",
    "evaluate": "Evaluation report",
}


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write `report.html` into `folder` atomically and return its path."""
    return write_atomically(folder / "report.html", render(record))


def render(record: RunRecord) -> str:
    """The page of a run as one HTML document."""
    templates = environment()
    style = templates.get_template("page.css").render()
    return templates.get_template("report.html.j2").render(_view(legible(record)), **sealed(style))


def _view(record: RunRecord) -> dict[str, object]:
    """Everything that the template shows."""
    against = reference(record)
    alike, apart = agreement(record)
    return {
        "record": record,
        "title": _TITLES[record.kind],
        "subject": _subject(record),
        "facts": _facts(record),
        "findings": findings(record),
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
        "settings": wording.settings(record.configuration),
        "environment": list(machine(record.environment)),
        "costs": list(_costs(record)),
    }


def _subject(record: RunRecord) -> str:
    model = record.models.get("before") or next(iter(record.models.values()), None)
    if model is None:
        return "Model not recorded"
    return subject(model.source)


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    facts = [("Method", record.method or ""), ("Seed", str(record.seed)), ("Created", record.created)]
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
