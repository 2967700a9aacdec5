"""The verb that checks what is there: `verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge import terminal
from expunge.cli._app import app
from expunge.cli._flags import Look, TrustRemoteCode
from expunge.errors import UsageError

COLOURS = {"verified": "green", "readable": "green", "differs": "red", "not checked": "yellow"}


@app.command
def verify(
    folder: Annotated[Path, Parameter(help="Output folder of a run.")],
    /,
    *,
    trust_remote_code: TrustRemoteCode = False,
    look: Look = Look(),
) -> None:
    """Check a folder against its record: model, data, page. Exit status 2 if anything differs.

    Hashes every file of model/, weights and data where they are on this machine, and renders the page again.
    What is not here is named as not checked.
    """
    from expunge.verify import differing
    from expunge.verify import verify as check

    terminal.reporter(silent=True)
    found = check(folder, trust_remote_code=trust_remote_code)
    if look.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    elif not look.quiet:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in found:
            verdict = Text(finding.verdict, style=COLOURS[finding.verdict])
            table.add_row(verdict, Text(finding.what), Text(finding.why))
        Console(highlight=False).print(table)
    if wrong := differing(found):
        names = "; ".join(f"{finding.what}: {finding.why}" for finding in wrong)
        raise UsageError(f"{folder} must hold what its record says; it differs in {names}")
