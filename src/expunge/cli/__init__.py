"""The command line: verbs, each a call into `expunge.api`. Nothing imports this package."""

from __future__ import annotations

import sys

from expunge import terminal
from expunge.cli import _audit, _measure, _neighbours, _plan, _show, _train, _verify
from expunge.cli._app import app

__all__ = ["app", "main"]

VERBS = (_train, _measure, _audit, _neighbours, _show, _plan, _verify)
"""Importing these registers their verbs."""


def main() -> None:
    """Entry point.

    Exit status 0 done, 1 our defect, 2 the user's input or environment, 3 diverged, 130 interrupted.
    """
    sys.exit(terminal.guarded(lambda: app(exit_on_error=False, print_error=False)))
