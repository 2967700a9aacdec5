"""What a reader is shown beside the numbers: the worst case over attacks, and the records that came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expunge.attacks.answers import best
from expunge.attacks.attack import Findings
from expunge.attacks.choose_best import ChooseBest, winners, worst_case
from expunge.audit_record import Answer, AttackEntry, Column, Worst
from expunge.auditing.judgement import judge
from expunge.auditing.running import Found, result
from expunge.auditing.store import redacted
from expunge.records import Records

SHOWN = 24
"""Records with their inputs in a record and on its page."""


def telling(attacks: Sequence[AttackEntry]) -> list[str]:
    """Attacks that bring text back, of those that tell something; without a control, all that ran."""
    done = [e for e in attacks if e.judgement is not None and e.family != "membership"]
    judged = [e for e in done if e.judgement is not None and e.judgement.outcome in ("within", "exceeds")]
    controlled = any(e.judgement is not None and e.judgement.outcome != "unjudged" for e in done)
    return [entry.name for entry in (judged if controlled else done)]


def best_entry(found: Mapping[str, Found], names: Sequence[str], seed: int) -> AttackEntry | None:
    """The worst case per record over several attacks, in every column that all of them have."""
    if len(names) < 2:
        return None
    columns: list[Column] = [column for column in found[names[0]] if all(column in found[n] for n in names)]
    results = {
        column: result(worst_case({name: found[name][column] for name in names}), 0.0, seed)
        for column in columns
    }
    plain = {column: one.model_copy(update={"notes": []}) for column, one in results.items()}
    return AttackEntry(
        name=ChooseBest.name,
        family=ChooseBest.family,
        line=ChooseBest.line,
        configuration={"attacks": ", ".join(names)},
        status="done",
        results=plain,
        judgement=judge(plain, ChooseBest.family),
    )


def worst(found: Mapping[str, Found], names: Sequence[str], records: Records, *, redact: bool) -> list[Worst]:
    """The records that came back, or nearest to it, each with the input that did it.

    First those that came back from the unlearned model and not from the control, then by score.
    """
    unlearned = {name: found[name]["unlearned"] for name in names}
    controls = [found[name]["control"] for name in names if "control" in found[name]]
    shown = [_worst(i, unlearned, controls, records, redact=redact) for i in range(len(records))]
    near = [one for one in shown if one.answer.recovered or one.answer.score > 0]
    near.sort(key=lambda one: (one.answer.recovered, not one.control, one.answer.score), reverse=True)
    return near[:SHOWN]


def _worst(
    i: int,
    unlearned: Mapping[str, Findings],
    controls: Sequence[Findings],
    records: Records,
    *,
    redact: bool,
) -> Worst:
    tries = {name: findings.recoveries[i] for name, findings in unlearned.items()}
    furthest = best(list(tries.values()))
    attack = next(
        (n for n, one in tries.items() if (one.score, one.recovered) == (furthest.score, furthest.recovered)),
        "",
    )
    answer = Answer(
        attack=attack,
        input="" if redact else furthest.input,
        output="" if redact else furthest.output,
        score=furthest.score,
        recovered=furthest.recovered,
        tries=furthest.tries,
    )
    return Worst(
        place=records.number(i),
        prompt="" if redact else records[i].prompt,
        response="" if redact else records[i].response,
        answer=answer,
        attacks=list(winners(unlearned, i)),
        control=any(findings.recoveries[i].recovered for findings in controls) if controls else None,
    )


def redact_entry(entry: AttackEntry, secrets: Sequence[str]) -> AttackEntry:
    """An attack's entry without words that quote a record."""
    return entry.model_copy(update={"why": redacted(entry.why, secrets) if entry.why else ""})
