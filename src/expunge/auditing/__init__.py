"""The audit: attacks on the original, the unlearned and a control model, and a verdict with its evidence.

`audit` reads records and models, lets every attack run in its time, judges what came back beside the
control, and leaves `audit.json` and `report.html`. What has ended is kept in `findings/`, not run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge import api, output
from expunge.attacks import ATTACKS, PLAIN, Attack
from expunge.audit_record import AttackEntry, AuditRecord, Untried, write_audit
from expunge.auditing import subjects
from expunge.auditing.evidence import best_entry, redact_entry, telling, worst
from expunge.auditing.judgement import knows, reference, verdict
from expunge.auditing.material import Material, choose, claim, gather
from expunge.auditing.options import AuditOptions
from expunge.auditing.running import Case, Found, Session, announce, attack_all
from expunge.auditing.store import Store, redacted
from expunge.environment import environment, installed, peak_memory
from expunge.errors import UsageError
from expunge.locks import exclusive
from expunge.models import ModelSource
from expunge.record import ModelEntry
from expunge.report.audit import write_page
from expunge.runs import data_entry

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
            `UnlearningArguments`; fields of an attack as `{"relearn:steps": 10}`.

    Raises:
        UsageError: Records, models or settings cannot be used; the control knows the forget records.

    Example:
        >>> audit("out").record.verdict.word  # doctest: +SKIP
        'suppressed'
    """
    options, settings = AuditOptions.take(settings)
    chosen, absent = choose(attacks, {key: value for key, value in settings.items() if ":" in key})
    reading = {key: value for key, value in settings.items() if ":" not in key}
    models: Any = {"unlearned": model, "control": control, "original": original}
    material = gather(models, tokenizer, forget, options, reading)
    folder = claim(options, material)
    started = time.perf_counter()
    targets, entries = subjects.load(
        material.sources, material.tokenizers, material.args, trust=options.trust_remote_code
    )
    if folder and options.overwrite:
        output.clear(folder)
    loaded = time.perf_counter()
    session = _session(material, options, folder, targets, entries)
    cases, chance = subjects.cases(targets, material.probes, entries)
    announce(chosen, cases, session)
    tried, found = _attack(chosen, cases, chance, session)
    timings = {"load": loaded - started, "attacks": time.perf_counter() - loaded}
    record = _record([*tried, *absent], found, material, options).model_copy(
        update={"models": entries, "timings": {phase: round(s, 3) for phase, s in timings.items()}}
    )
    if folder:
        write_audit(record, folder)
        write_page(record, folder)
    return AuditResult(record, folder)


def _session(
    material: Material,
    options: AuditOptions,
    folder: Path | None,
    targets: subjects.Targets,
    entries: dict[str, ModelEntry],
) -> Session:
    """What all attacks share; text that is kept from an audit without --redact goes now."""
    secrets = material.secrets if options.redact else ()
    store = Store(folder, options.seconds, options.redact, secrets)
    if options.redact:
        store.redact_all()
    original = (targets["original"], entries["original"].sha256) if "original" in targets else None
    args = material.args
    return Session(store, args.seed, args.precision, options.seconds, original, options.reporter)


def _attack(
    chosen: Sequence[Attack], cases: Sequence[Case], chance: Case | None, session: Session
) -> tuple[list[AttackEntry], dict[str, Found]]:
    """The plain prompt, then the control's proof that it does not know the records, then all other attacks.

    Raises:
        UsageError: The prompts cannot be asked, or the control knows the forget records.
    """
    entries, found = [], {}
    for attack in chosen:
        mine = [subjects.halved(case) for case in cases] if attack.family == "membership" else cases
        entry, found[attack.name] = attack_all(attack, mine, session)
        entries.append(entry)
        if attack.name == PLAIN:
            _check_plain(attack, entry, (cases, chance), session)
    return entries, {name: columns for name, columns in found.items() if columns}


def _check_plain(
    plain: Attack, entry: AttackEntry, asked: tuple[Sequence[Case], Case | None], session: Session
) -> None:
    cases, chance = asked
    if any(case.column not in entry.results for case in cases):
        raise UsageError(f"The training prompts must be answered before anything is attacked. {entry.why}")
    if "control" not in entry.results:
        return
    guessed = attack_all(plain, [chance], session)[0].results["holdout"] if chance else None
    if why := knows(entry.results["control"], entry.results.get("original"), guessed):
        raise UsageError(
            f"--control must be a model that never saw the forget records; {why}. Name another, or "
            "leave it out "
            "and give --holdout."
        )


def _record(
    entries: list[AttackEntry], found: dict[str, Found], material: Material, options: AuditOptions
) -> AuditRecord:
    """The verdict and its evidence."""
    secrets = material.secrets if options.redact else ()
    attacks = [redact_entry(entry, secrets) for entry in entries]
    names = telling(attacks)
    best = best_entry(found, names, material.args.seed)
    column = reference(attacks[0].results)
    args = material.args
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
        verdict=verdict(attacks, best),
        attacks=attacks,
        best=best,
        worst=worst(found, names, material.sets["forget"], redact=options.redact),
        untried=_untried(attacks, controlled=column is not None),
        data={name: data_entry(records) for name, records in material.sets.items()},
        environment=environment(),
        peak_memory_bytes=peak_memory(),
        notes=[redacted(note, secrets) for note in material.notes],
    )


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
