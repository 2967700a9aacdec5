"""The table of attacks on recipes: its numbers and marks follow from what was found."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.attacks.attack import Findings, Recovery
from expunge.audit_record import AttackEntry
from expunge.auditing.running import result

RECORDS = 20


@pytest.fixture(scope="module")
def table() -> Iterator[Any]:
    """The script's module, which belongs to no package."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
        yield importlib.import_module("audit_results")


def unit(table: Any, model: str, column: str, hits: dict[str, int], seed: int = 0) -> Any:
    """A model from which every attack got so many records back."""
    attacks = {}
    for name, count in hits.items():
        family = "none" if name == "prompt" else "weights"
        found = Findings([Recovery(float(i < count), i < count) for i in range(RECORDS)])
        results: dict[Any, Any] = {column: result(found, 12.5, 0)}
        entry = AttackEntry(name=name, family=family, line=".", status="done", results=results)
        attacks[name] = table.Attacked(entry=entry, findings=found, busy=3.0)
    training = {"stop": "step-limit", "steps": 60, "learning_rate": 3e-5, "seconds": 200.0}
    return table.Unit(model=model, seed=seed, training=training, attacks=attacks)


@pytest.fixture(scope="module")
def units(table: Any) -> list[Any]:
    return [
        unit(table, "original", "original", {"prompt": 20, "relearn": 20, "any": 20}),
        unit(table, "control", "control", {"prompt": 0, "relearn": 1, "any": 19}),
        unit(table, "npo", "unlearned", {"prompt": 0, "relearn": 14, "any": 20}),
        unit(table, "npo", "unlearned", {"prompt": 0, "relearn": 1, "any": 20}, seed=1),
        unit(table, "grad-diff", "unlearned", {"prompt": 12, "relearn": 14, "any": 20}),
    ]


def test_every_recipe_gets_the_verdict_of_an_audit(table, units):
    audits = {(one["model"], one["seed"]): one for one in table.numbers(units)["audits"]}
    assert audits["npo", 0]["word"] == "suppressed"
    assert audits["npo", 1]["word"] == "erased"
    assert audits["grad-diff", 0]["word"] == "not forgotten"
    assert audits["npo", 0]["outcomes"] == {"prompt": "within", "relearn": "exceeds", "any": "blunt"}


def test_the_worst_case_leaves_out_what_any_model_gives_up(table, units):
    rows = table.numbers(units)["rows"]
    worst = {(row["model"], row["seed"]): row["recovered"] for row in rows if row["attack"] == "any of these"}
    assert worst["npo", 0][0] == 0.7
    assert worst["npo", 1][0] == 0.05
    (low,) = [row for row in rows if (row["model"], row["seed"], row["attack"]) == ("npo", 1, "prompt")]
    assert low["recovered"] == [0.0, 0.0, 0.1684]  # Clopper-Pearson: 1 - 0.025 ** (1 / 20)
    assert (low["n"], low["seconds"], low["busy_seconds"]) == (20, 12.5, 3.0)


def test_the_table_marks_what_exceeds_the_control(table, units):
    lines = table.markdown(table.numbers(units)).splitlines()
    assert lines[0] == "| attack | original | control | npo | grad-diff | seconds |"
    assert "| relearn | 100 % | 5 % | 70 %\\* / 5 % | 70 %\\* | 3 |" in lines
    assert lines[-1] == "| **verdict** |  |  | suppressed, erased | not forgotten | |"


def test_what_is_not_there_yet_is_left_open(table, units):
    first = table.numbers(units[:1])
    assert first["audits"] == []
    assert "| relearn | 100 % | 3 |" in table.markdown(first)
