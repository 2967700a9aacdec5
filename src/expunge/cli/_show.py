"""Verbs that show what is there: `report`, `list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli._app import app
from expunge.errors import UsageError


@app.command
def report(
    folders: Annotated[list[Path], Parameter(help="Output folders of earlier runs.")],
    /,
    *,
    output: Annotated[
        Path, Parameter(help="The page about several folders; one folder keeps its report.html.")
    ] = Path("leaderboard.html"),
    series: Annotated[
        Literal["size", "request"] | None,
        Parameter(help="Draw several runs as curves: by size of the forget set, or as successive requests."),
    ] = None,
) -> None:
    """Render report.html again from record.json; of several folders, also one page that compares them."""
    from expunge.benchmarks.series import series as in_order
    from expunge.record import read_record
    from expunge.report import write_report
    from expunge.report.leaderboard import write_leaderboard

    folders = [
        folder.parent if folder.name in ("record.json", "comparison.json", "audit.json") else folder
        for folder in folders
    ]
    if len(folders) == 1 and (folders[0] / "audit.json").is_file():
        from expunge.audit_record import read_audit
        from expunge.report.audit import write_page

        print(write_page(read_audit(folders[0]), folders[0]))
    elif len(folders) == 1 and (folders[0] / "comparison.json").is_file():
        from expunge.comparison import refresh

        refresh(folders[0])
        print(folders[0] / "report.html")
    elif len(folders) > 1:
        drawn = in_order(folders, series) if series else None
        print(write_leaderboard(folders, output, series=drawn))
    elif series:
        raise UsageError("--series must have several folders; got one. Name the folders of all runs.")
    else:
        print(write_report(read_record(folders[0]), folders[0]))


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "weightings", "step-sizes", "benchmarks", "metrics", "attacks", "filters"] | None,
        Parameter(help="One kind only."),
    ] = None,
    /,
) -> None:
    """List what can be chosen, with a line on each."""
    from expunge.catalogue import catalogue

    table = Table(box=None, show_header=False, pad_edge=False)
    for kind, entries in catalogue().items():
        if what in (None, kind):
            table.add_row(f"[bold]{kind}[/bold]", "")
            for name, line in entries.items():
                table.add_row(f"  {name}", line)
    Console(highlight=False).print(table)
