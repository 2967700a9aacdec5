"""Results of `audit_table.py`: what was found on every model, as one file of numbers and as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from expunge.attacks import Findings
from expunge.attacks.choose_best import worst_case
from expunge.audit_record import AttackEntry, Column
from expunge.auditing.evidence import best_entry, telling
from expunge.auditing.judgement import HIGHEST, judge, share
from expunge.auditing.running import Found
from expunge.auditing.verdicts import verdict
from expunge.environment import environment
from expunge.record import Entry, Metric

ORIGINAL, CONTROL = "original", "control"

Columns = Mapping[Column, "Unit"]


class Attacked(Entry):
    """One attack on one model; `busy` is processor time in seconds, which other work does not stretch."""

    entry: AttackEntry
    findings: Findings | None
    busy: float = 0.0


class Unit(Entry):
    """One model and all attacks on it so far."""

    model: str
    seed: int
    training: dict[str, Any]
    attacks: dict[str, Attacked]


def numbers(units: Sequence[Unit]) -> dict[str, Any]:
    """Everything measured; what `expunge audit` would say of every recipe, where the others are there."""
    others: dict[Any, Unit] = {u.model: u for u in units if u.model in (ORIGINAL, CONTROL)}
    done = [unit for unit in units if unit.model not in others]
    against = others[CONTROL].attacks if CONTROL in others else {}
    dull = {
        name
        for name, one in against.items()
        if any(result.recovered.value >= HIGHEST for result in one.entry.results.values())
    }
    common = {name for unit in units for name in unit.attacks if all(name in one.attacks for one in units)}
    return {
        "environment": environment().model_dump(),
        "training": [{"model": u.model, "seed": u.seed, **u.training} for u in units],
        "attacks": {
            name: {"family": one.entry.family, "configuration": one.entry.configuration}
            for unit in units
            for name, one in unit.attacks.items()
        },
        "rows": [row for unit in units for row in rows_of_unit(unit, common - dull)],
        "audits": [audited({"unlearned": unit, **others}, unit) for unit in done if len(others) == 2],
    }


def rows_of_unit(unit: Unit, telling: Collection[str]) -> list[dict[str, Any]]:
    """One model's numbers, an attack each; last the worst case over attacks that bring records back.

    There count attacks that ran on every model, but neither membership nor a dull one, which gets half of the
    records out of the control as well.
    """
    rows = []
    for name, one in unit.attacks.items():
        row: dict[str, Any] = {"model": unit.model, "seed": unit.seed, "attack": name}
        for result in one.entry.results.values():
            row |= {
                "recovered": interval(result.recovered),
                "n": result.recovered.n,
                "score": interval(result.score),
                "seconds": round(result.seconds, 1),
                "busy_seconds": round(one.busy, 1),
                "complete": result.complete,
                "tries": result.tries,
                "values": {what: interval(metric) for what, metric in result.values.items()},
                "notes": result.notes if not result.complete else [],
            }
        rows.append(row if one.entry.status == "done" else row | {"why": one.entry.why})
    text = {n: one.findings for n, one in unit.attacks.items()
            if one.findings and one.entry.family != "membership" and n in telling}  # fmt: skip
    if text:
        flags = [one.recovered for one in worst_case(text).recoveries]
        row = {"model": unit.model, "seed": unit.seed, "attack": "any of these"}
        rows.append(row | {"recovered": interval(share(flags)), "n": len(flags)})
    return rows


def audited(columns: Columns, unit: Unit) -> dict[str, Any]:
    """What `expunge audit` would say of a model, from the attacks that ran on all three."""
    common = [name for name in unit.attacks if all(name in one.attacks for one in columns.values())]
    entries, found = [], {}
    for name in common:
        ran: Found = {c: f for c, one in columns.items() if (f := one.attacks[name].findings) is not None}
        results = {c: r for c, one in columns.items() for r in one.attacks[name].entry.results.values()}
        entry = unit.attacks[name].entry.model_copy(update={"results": results})
        if entry.status == "done":
            found[name] = ran
            entry = entry.model_copy(update={"judgement": judge(results, entry.family)})
        entries.append(entry)
    best = best_entry(found, telling(entries), seed=0)
    word = verdict(entries, best)
    outcomes = {e.name: e.judgement.outcome for e in entries if e.judgement}
    return {
        "model": unit.model,
        "seed": unit.seed,
        **word.model_dump(),
        "outcomes": outcomes,
        "best": best.judgement.outcome if best and best.judgement else None,
    }


def interval(metric: Metric) -> list[float]:
    """Value, low, high."""
    return [round(value, 4) for value in (metric.value, metric.low, metric.high)]


# --- the table


def markdown(results: Mapping[str, Any]) -> str:
    """Attacks down, models across: the share recovered, per seed; beside it processor seconds per model.

    In the cells: `*` more than the control gives up, `~` cut short by time, `–` not run.
    """
    first = (ORIGINAL, CONTROL)
    models = list(dict.fromkeys(row["model"] for row in results["rows"]))
    models.sort(key=lambda name: first.index(name) if name in first else len(first))
    attacks = list(dict.fromkeys(row["attack"] for row in results["rows"]))
    attacks.sort(key=lambda name: name == "any of these")
    lines = [f"| attack | {' | '.join(models)} | seconds |", f"| --- |{' ---: |' * (len(models) + 1)}"]
    for attack in attacks:
        rows = [row for row in results["rows"] if row["attack"] == attack]
        cells = [_cell([row for row in rows if row["model"] == model], results) for model in models]
        spent = [row["busy_seconds"] for row in rows if "busy_seconds" in row]
        mean = f"{sum(spent) / len(spent):.0f}" if spent else ""
        lines.append(f"| {attack} | {' | '.join(cells)} | {mean} |")
    if any("retain" in one for one in results["training"]):
        lines.append(
            f"| *retain, plain prompt* | {' | '.join(_kept(model, results) for model in models)} | |"
        )
    words = [", ".join(a["word"] for a in results["audits"] if a["model"] == model) or "" for model in models]
    lines.append(f"| **verdict** | {' | '.join(words)} | |")
    return "\n".join(lines) + "\n"


def _kept(model: str, results: Mapping[str, Any]) -> str:
    """Share of the retain questions answered, per seed."""
    shares = [one["retain"][0] for one in results["training"] if one["model"] == model and "retain" in one]
    return " / ".join(f"{share:.0%}".replace("%", " %") for share in shares) or "–"


def _cell(rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    cells = []
    for row in rows:
        if "recovered" not in row:
            cells.append("–")
            continue
        outcomes = [
            a["outcomes"].get(row["attack"]) if row["attack"] != "any of these" else a["best"]
            for a in results["audits"]
            if (a["model"], a["seed"]) == (row["model"], row["seed"])
        ]
        marks = ("\\*" if "exceeds" in outcomes else "") + ("~" if not row.get("complete", True) else "")
        cells.append(f"{row['recovered'][0]:.0%}{marks}".replace("%", " %"))
    return " / ".join(cells) or "–"
