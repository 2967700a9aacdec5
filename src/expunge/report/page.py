"""A template and what it shows -> one HTML document under a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from expunge.record import Environment
from expunge.report import wording

_FILTERS = {
    "number": wording.number,
    "duration": wording.duration,
    "whole": wording.whole,
    "unbroken": wording.unbroken,
    "breakable": wording.breakable,
}


def page(template: str, view: Mapping[str, object]) -> str:
    """The document: every string of `view` is escaped, and a name that it lacks is an error."""
    templates = Templates(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= _FILTERS
    style = templates.get_template("page.css").render()
    return templates.get_template(template).render(view, **_sealed(style))


def subject(source: str) -> str:
    """What a page calls a model: the last part of a local path, else the whole name."""
    local = source.startswith(("/", ".", "~"))
    return (PurePath(source).name if local else "") or source


def machine(found: Environment) -> Iterable[tuple[str, str]]:
    """The machine that was measured on, in rows."""
    yield "Platform", found.platform
    yield "Processor", f"{found.processor}, {found.cores} core{'s' if found.cores != 1 else ''}"
    yield "Memory", wording.size(found.memory_bytes)
    yield "Accelerators", ", ".join(found.accelerators) or "none"
    yield "Python", found.python
    yield from found.packages.items()


def _sealed(style: str) -> dict[str, str]:
    """The style sheet (our own file, so not escaped) and its hash for the content security policy."""
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return {"style": Markup(style), "style_hash": f"sha256-{digest}"}
