"""A template and what it shows -> one HTML document under a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

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
    environment = Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    style = environment.get_template("page.css").render()
    return environment.get_template(template).render(view, **_sealed(style))


def _sealed(style: str) -> dict[str, str]:
    """The style sheet (our own file, so not escaped) and its hash for the content security policy."""
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return {"style": Markup(style), "style_hash": f"sha256-{digest}"}
