"""The command line: verbs, each a call into `expunge.api`. Nothing imports this package."""

from __future__ import annotations

import sys

from expunge import terminal
from expunge.cli import _measure, _plan, _show, _train
from expunge.cli._app import app

__all__ = ["app", "main"]

VERBS = (_train, _measure, _show, _plan)
"""Importing these registers their verbs."""


def main() -> None:
    """Entry point: exit status 0 done, 1 our defect, 2 the user's input or environment, 130 interrupted."""
    sys.exit(terminal.guarded(lambda: app(exit_on_error=False, print_error=False)))
