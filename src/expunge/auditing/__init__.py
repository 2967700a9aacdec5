"""The audit: attacks on the original, the unlearned and a control model, and a verdict with its evidence.

`audit` reads records and models, lets every attack run in its time, judges what came back beside the
control, and leaves `audit.json` and `report.html`. What has ended is kept in `findings/`, not run again.

Several processes (torchrun) share the attacks: the first asks the plain prompt, then each takes the next
attack that nobody has taken, on all columns, alone; the first judges, and writes all but the findings.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch.distributed import ProcessGroup
from transformers import PreTrainedTokenizerBase

from expunge import api, output, ranks
from expunge.attacks import ATTACKS, Attack
from expunge.audit_record import (
    AttackEntry,
    AuditRecord,
    Column,
    FilterEntry,
    Result,
    Untried,
    write_audit,
)
from expunge.auditing import subjects
from expunge.auditing.controls import Doubt, doubt, knows
from expunge.auditing.evidence import best_entry, redact_entry, telling, worst
from expunge.auditing.judgement import reference
from expunge.auditing.material import Material, choose, claim, gather
from expunge.auditing.options import AuditOptions
from expunge.auditing.running import Case, Found, Session, announce, attack_all
from expunge.auditing.store import Store, redacted
from expunge.auditing.verdicts import verdict
from expunge.defences.by_name import Named, of_filters
from expunge.environment import environment, installed, peak_memory
from expunge.errors import UsageError
from expunge.locks import exclusive
from expunge.models import ModelSource
from expunge.progress import Silent
from expunge.record import ModelEntry
from expunge.report.audit import write_page
from expunge.runs import data_entry

LEFT_OUT: Final = "left out"
"""In place of a text in a redacted record."""

__all__ = ["AuditOptions", "AuditResult", "audit"]


@dataclass(frozen=True)
class AuditResult:
    """What an audit leaves behind.

    Args:
        record: The verdict and everything measured.
        folder: Where `audit.json` and `report.html` are; None when nothing was written.
    """

    record: AuditRecord
    folder: Path | None


@exclusive
def audit(
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    forget: api.Data | None = None,
    original: ModelSource | None = None,
    control: ModelSource | None = None,
    attacks: Sequence[str | Attack] | None = None,
    **settings: Any,
) -> AuditResult:
    """Try to bring back what was removed, on several models, and judge by what a control gives up.

    Args:
        model: The unlearned model: a local folder, a Hub id, or a model in memory; or the output folder of a
            finished run, which then says what else is needed.
        tokenizer: Needed with a model in memory.
        forget: The records that were removed.
        original: The model before unlearning: shows that the records were known, and lends itself to attacks
            that borrow from it.
        control: A model that never saw the forget records. Without one, `holdout` records stand in.
        attacks: Names from `expunge list attacks`, FILE.py:NAME, or attacks; None: all that can run
            here, but for near relatives of others (`ON_REQUEST`).
        **settings: Fields of `AuditOptions`; `template`, `max_length`, `bf16`, `seed` and other fields of
            `UnlearningArguments`; fields of an attack or a filter as `{"relearn:steps": 10}`.

    Raises:
        UsageError: Records, models or settings cannot be used; the control knows the forget records.

    Example:
        >>> audit("out").record.verdict.word  # doctest: +SKIP
        'suppressed'
    """
    options, settings = AuditOptions.take(settings)
    others = of_filters(settings, options.filters)
    own = {key: value for key, value in settings.items() if ":" in key and key not in others}
    chosen, absent = choose(attacks, own)
    models: Any = {"unlearned": model, "control": control, "original": original}
    material = gather(models, tokenizer, forget, options, settings)
    if ranks.several():
        subjects.check_whole(material.sources)
    with ranks.patient() as group:
        folder = ranks.decided(partial(claim, options, material), group)
        record = _audit(material, options, (chosen, absent), folder, group)
    return AuditResult(record, folder)


def _audit(
    material: Material,
    options: AuditOptions,
    attacks: tuple[Sequence[Attack], Sequence[AttackEntry]],
    folder: Path | None,
    group: ProcessGroup | None,
) -> AuditRecord:
    """Attack and judge, with what can be run and what cannot; the record is on disk when this ends."""
    started = time.perf_counter()
    targets, entries = subjects.load(
        material.sources, material.tokenizers, material.args, trust=options.trust_remote_code
    )
    session = _session(material, options, folder, targets, entries)
    bare, targets = targets, subjects.behind(material.filters, targets, material.args)
    ranks.decided(partial(_make_room, session.store, overwrite=options.overwrite), group)
    loaded = time.perf_counter()
    cases = subjects.cases(targets, material.probes, entries)
    check = subjects.control_check(bare, material.probes, entries)
    tried, found, open_question = _attack(attacks[0], cases, check, session, group)
    timings = {"load": loaded - started, "attacks": time.perf_counter() - loaded}

    def judged() -> AuditRecord:
        record = _record([*tried, *attacks[1]], found, material, options, open_question).model_copy(
            update={"models": entries, "timings": {phase: round(s, 3) for phase, s in timings.items()}}
        )
        if folder:
            write_audit(record, folder)
            write_page(record, folder)
        return record

    return ranks.decided(judged, group)


def _session(
    material: Material,
    options: AuditOptions,
    folder: Path | None,
    targets: subjects.Targets,
    entries: dict[str, ModelEntry],
) -> Session:
    """What all attacks share; of several processes the first alone tells."""
    secrets = material.secrets if options.redact else ()
    store = Store(folder, options.seconds, options.redact, secrets)
    original = (targets["original"], entries["original"].sha256) if "original" in targets else None
    args = material.args
    reporter = options.reporter if ranks.first() else Silent()
    return Session(store, args.seed, args.precision, options.seconds, original, reporter)


def _make_room(store: Store, *, overwrite: bool) -> None:
    """All input has been accepted: an earlier audit may go, or the text that it kept."""
    if store.folder and overwrite:
        output.clear(store.folder)
    if store.redacted:
        store.redact_all()


def _attack(
    chosen: Sequence[Attack],
    cases: Sequence[Case],
    check: Sequence[Case],
    session: Session,
    group: ProcessGroup | None,
) -> tuple[list[AttackEntry], dict[str, Found], Doubt | None]:
    """The plain prompt, then the control's proof that it does not know the records, then all other attacks.

    Raises:
        UsageError: The prompts cannot be asked, or the control knows the forget records.
    """
    others = chosen[1:]
    plain, open_question = ranks.decided(partial(_begin, chosen, cases, check, session), group)
    rest = ranks.taken(len(others), lambda i: _one(others[i], cases, session), group)
    done = [plain, *rest]
    found = {entry.name: columns for entry, columns in done if columns}
    return [entry for entry, _ in done], found, open_question


def _begin(
    chosen: Sequence[Attack], cases: Sequence[Case], check: Sequence[Case], session: Session
) -> tuple[tuple[AttackEntry, Found], Doubt | None]:
    """Say what all attacks cost, and run the first of them: the plain prompt; what that leaves open."""
    announce(chosen, cases, session)
    plain = _one(chosen[0], cases, session)
    results = plain[0].results
    if any(case.column not in results for case in cases):
        why = redacted(plain[0].why, session.store.secrets)
        raise UsageError(f"The training prompts must be answered before anything is attacked. {why}")
    asked = {case.column: (case, results[case.column]) for case in cases}
    return plain, _check_control(chosen[0], asked, check, session)


def _one(attack: Attack, cases: Sequence[Case], session: Session) -> tuple[AttackEntry, Found]:
    mine = [subjects.halved(case) for case in cases] if attack.family == "membership" else cases
    return attack_all(attack, mine, session)


def _check_control(
    plain: Attack, asked: Mapping[Column, tuple[Case, Result]], check: Sequence[Case], session: Session
) -> Doubt | None:
    """Refuse a control that knows the records, asked without the audit's filters; what that leaves open."""
    if not check:
        return None
    nowhere = replace(session.store, folder=None)  # the column's own findings stand where these would
    found: dict[Column, Result] = {}
    for case in check:
        same, result = asked.get(case.column, (None, None))
        if same is None or same.weights != case.weights:
            entry = attack_all(plain, [case], session if same is None else replace(session, store=nowhere))[0]
            if (result := entry.results.get(case.column)) is None:
                why = redacted(entry.why, session.store.secrets)
                raise UsageError(f"The control must answer the {case.column} prompts. {why}")
        assert result is not None
        found[case.column] = result
    original = asked["original"][1] if "original" in asked else None
    seen = found["control"], original, found.get("holdout")
    if why := knows(*seen):
        raise UsageError(
            f"--control must be a model that never saw the forget records; {why}. Name another, or "
            "leave it out "
            "and give --holdout."
        )
    return doubt(*seen)


def _record(
    entries: list[AttackEntry],
    found: dict[str, Found],
    material: Material,
    options: AuditOptions,
    open_question: Doubt | None,
) -> AuditRecord:
    """The verdict and its evidence."""
    secrets = material.secrets if options.redact else ()
    attacks = [redact_entry(entry, secrets) for entry in entries]
    names = telling(attacks)
    best = best_entry(found, names, material.args.seed)
    column = reference(attacks[0].results)
    args = material.args
    filters = [_filter_entry(one, secrets) for one in material.all_filters]
    return AuditRecord(
        expunge_version=installed("expunge") or "0",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        configuration={
            "attacks": [entry.name for entry in attacks],
            "seconds": options.seconds,
            "precision": args.precision,
            "template": args.template,
            "max_length": args.max_length,
        },
        seed=args.seed,
        redacted=options.redact,
        control={"control": "model", "holdout": "holdout"}.get(column or "", "none"),
        filters=filters,
        verdict=verdict(attacks, best, open_question, _through(material, filters, column)),
        attacks=attacks,
        best=best,
        worst=worst(found, names, material.sets["forget"], redact=options.redact),
        untried=_untried(attacks, controlled=column is not None),
        data={name: data_entry(records) for name, records in material.sets.items()},
        environment=environment(),
        peak_memory_bytes=peak_memory(),
        notes=[redacted(note, secrets) for note in material.notes],
    )


def _filter_entry(one: Named, secrets: Sequence[str]) -> FilterEntry:
    """A filter as the record names it; in a redacted one without any text of its configuration."""
    counted = re.compile(r"\d+ (text|value)s?")
    plain = {
        key: LEFT_OUT if secrets and isinstance(v, str) and not counted.fullmatch(v) else v
        for key, v in one.configuration.items()
    }
    return FilterEntry(name=redacted(one.name, secrets), configuration=plain)


def _through(material: Material, filters: Sequence[FilterEntry], column: str | None) -> str:
    """Who was asked through which filters; "" where nobody was."""
    if not filters:
        return ""
    stack = ", ".join(entry.name for entry in filters)
    if column != "control":
        return f"The unlearned model was asked through filters: {stack}."
    if material.guards("control"):
        return f"The unlearned and the control model were asked through filters: {stack}."
    return f"The unlearned model was asked through filters: {stack}. The control was asked without."


def _untried(attacks: Sequence[AttackEntry], *, controlled: bool) -> list[Untried]:
    """What was not run, and what gave no answer."""
    silent = {"blunt", "unfinished", *(["unjudged"] if controlled else [])}
    stuck = [Untried(name=e.name, why=e.why) for e in attacks if e.status != "done"]
    unanswered = [
        Untried(name=e.name, why=f"{e.judgement.sentence} {e.why}".rstrip())
        for e in attacks
        if e.judgement is not None and e.judgement.outcome in silent
    ]
    tried = {entry.name for entry in attacks}
    left_out = [Untried(name=name, why="It was not asked for.") for name in ATTACKS if name not in tried]
    return [*stuck, *unanswered, *left_out]
