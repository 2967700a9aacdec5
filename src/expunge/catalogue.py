"""What can be chosen by name, with the first line of its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.benchmarks import muse, records, safety
from expunge.methods import METHODS
from expunge.weightings import WEIGHTINGS


def catalogue() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line."""
    return {
        "methods": _lines(METHODS),
        "weightings": _lines(WEIGHTINGS),
        "benchmarks": {"records": "Your own forget, retain and holdout records."},
        "metrics": {**records.METRICS, **muse.METRICS, **safety.METRICS},
    }


def _lines(entries: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: (entry.__doc__ or "").strip().splitlines()[0].replace("$", "")
        for name, entry in entries.items()
    }
