"""What can be chosen by name, with the first line of its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.benchmarks import BENCHMARKS, records
from expunge.methods import METHODS
from expunge.weightings import Constant, Normalized, TorchJD


def catalogue() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line."""
    return {
        "methods": _lines(METHODS),
        "weightings": _lines({kind.__name__: kind for kind in (Constant, Normalized, TorchJD)}),
        "benchmarks": {"records": "Your own forget, retain and holdout records."}
        | {name: entry.line for name, entry in BENCHMARKS.items()},
        "metrics": _metrics(),
    }


def _metrics() -> dict[str, str]:
    """All metrics of all benchmarks; the first to describe one describes it."""
    lines = dict(records.METRICS)
    for entry in BENCHMARKS.values():
        lines = {**entry.metrics, **lines}
    return lines


def _lines(entries: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: (entry.__doc__ or "").strip().splitlines()[0].replace("$", "")
        for name, entry in entries.items()
    }
