"""What can be chosen by name, with the first line of its documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from expunge import attacks
from expunge.benchmarks import BENCHMARKS, HARNESS, harness, records
from expunge.defences import by_name
from expunge.methods import METHODS
from expunge.step_sizes import STEP_SIZES
from expunge.weightings import WEIGHTINGS

RULES = {name: rule for name, rule in STEP_SIZES.items() if rule is not None}


def catalogue() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line."""
    return {
        "methods": {name: f"{line} {_source(METHODS[name])}" for name, line in _lines(METHODS).items()},
        "weightings": _lines(WEIGHTINGS),
        "step-sizes": {"schedule": "The Trainer's schedule, as settings say."} | _lines(RULES),
        "benchmarks": {"records": "Your own forget, retain and holdout records."}
        | HARNESS
        | {name: entry.line for name, entry in BENCHMARKS.items()},
        "metrics": metrics(),
        "attacks": attacks.lines(),
        "filters": by_name.lines(),
    }


def metrics() -> dict[str, str]:
    """All metrics of all benchmarks; the first to describe one describes it."""
    lines = dict(records.METRICS)
    for entry in BENCHMARKS.values():
        lines = {**entry.metrics, **lines}
    return {**harness.METRICS, **lines}


def _lines(entries: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: (entry.__doc__ or "").strip().splitlines()[0].replace("$", "")
        for name, entry in entries.items()
    }


def _source(recipe: Any) -> str:
    """The papers that a recipe's documentation refers to, in its order."""
    reference = (recipe.__doc__ or "").partition("Reference:")[2]
    found = dict.fromkeys(re.findall(r"arXiv \d{4}\.\d{5}", reference))
    return f"({', '.join(found)})"
