"""`record.json` -> `report.html`: one file, no request, no script.

Everything on the page comes from the record. Its strings are data of strangers (a model may write
anything): Jinja escapes them, `text.legible` writes out what would act invisibly, and a content security
policy that allows nothing but this page's own style sheet stands behind both.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path, PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from expunge.record import RunRecord, write_atomically
from expunge.report import tables, wording
from expunge.report.curves import panels
from expunge.report.limits import not_tested
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
_FILTERS = {
    "number": wording.number,
    "duration": wording.duration,
    "whole": wording.whole,
    "unbroken": wording.unbroken,
    "breakable": wording.breakable,
}


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write `report.html` into `folder` atomically and return its path."""
    return write_atomically(folder / "report.html", render(record))


def render(record: RunRecord) -> str:
    """The page of a run as one HTML document."""
    environment = Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    style = environment.get_template("page.css").render()
    return environment.get_template("report.html.j2").render(_view(legible(record)), **_sealed(style))


def _sealed(style: str) -> dict[str, str]:
    """The style sheet (our own file, so not escaped) and its hash for the content security policy."""
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return {"style": Markup(style), "style_hash": f"sha256-{digest}"}


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
        "environment": list(_environment(record)),
        "costs": list(_costs(record)),
    }


def _subject(record: RunRecord) -> str:
    model = record.models.get("before") or next(iter(record.models.values()), None)
    if model is None:
        return "Model not recorded"
    local = model.source.startswith(("/", ".", "~"))
    return (PurePath(model.source).name if local else "") or model.source


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    facts = [("Method", record.method or ""), ("Seed", str(record.seed)), ("Created", record.created)]
    return [(name, value) for name, value in facts if value]


def _environment(record: RunRecord) -> Iterable[tuple[str, str]]:
    found = record.environment
    yield "Platform", found.platform
    yield "Processor", f"{found.processor}, {found.cores} core{'s' if found.cores != 1 else ''}"
    yield "Memory", wording.size(found.memory_bytes)
    yield "Accelerators", ", ".join(found.accelerators) or "none"
    yield "Python", found.python
    yield from found.packages.items()


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
