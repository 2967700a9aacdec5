"""Everything that an audit is given, gathered from flags and from a run's folder, before any model loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge import api, output
from expunge.arguments import UnlearningArguments
from expunge.attacks import (
    ATTACKS,
    ON_REQUEST,
    PLAIN,
    Attack,
    Probes,
    Role,
    UnavailableError,
    family_of,
    make_attack,
)
from expunge.audit_record import FILE, AttackEntry, read_audit
from expunge.auditing import subjects
from expunge.auditing.options import AuditOptions
from expunge.auditing.run_folder import RunFolder, run_folder
from expunge.auditing.subjects import Source
from expunge.defences.by_name import Named, make_filters, named, of_filters
from expunge.defences.defended import Defended
from expunge.errors import UsageError
from expunge.models import ModelSource, load_tokenizer
from expunge.records import Records
from expunge.run_options import RunOptions
from expunge.settings import arguments


@dataclass(frozen=True)
class Material:
    """What an audit works on.

    Attributes:
        sources: Where each model is.
        tokenizers: Each model's; of one vocabulary.
        sets: The records as they were read.
        probes: The records as attacks see them.
        args: How records are read, device, precision, seed.
        filters: What the unlearned and the control model are asked through, outermost first.
        notes: What a reader must know.
    """

    sources: Mapping[Role, Source]
    tokenizers: Mapping[Role, PreTrainedTokenizerBase]
    sets: Mapping[str, Records]
    probes: Probes
    args: UnlearningArguments
    filters: tuple[Named, ...]
    notes: Sequence[str]

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every prompt and response that was to be forgotten."""
        return tuple(text for row in self.sets["forget"] for text in (row.prompt, row.response))

    @property
    def all_filters(self) -> tuple[Named, ...]:
        """With those that a model in memory came with."""
        place = self.sources["unlearned"].place
        own = place.filters.filters if isinstance(place, Defended) else ()
        return (*self.filters, *map(named, own))

    def guards(self, role: Role) -> bool:
        """Whether a model is asked through filters."""
        guarded = role != "original" and bool(self.filters)
        return guarded or isinstance(self.sources[role].place, Defended)


def gather(
    models: Mapping[Role, ModelSource | None],
    tokenizer: PreTrainedTokenizerBase | None,
    forget: api.Data | None,
    options: AuditOptions,
    settings: Mapping[str, Any],
) -> Material:
    """Read and check all that can be without a model; a run's folder fills in what is not given.

    Raises:
        UsageError: Something is missing, has changed since the run, or does not fit.
    """
    run = run_folder(models["unlearned"])
    reading = {key: value for key, value in settings.items() if ":" not in key}
    args = arguments((run.settings() if run else {"seed": 0}) | reading, RunOptions())
    sets, notes = _sets(
        {"forget": forget, "retain": options.retain, "holdout": options.holdout}, options, run
    )
    filters = make_filters(options.filters, of_filters(settings, options.filters), sets["forget"])
    if filters and (own := [role for role, place in models.items() if isinstance(place, Defended)]):
        raise UsageError(
            f"--filters must stand around bare models; the {own[0]} model comes with filters of its own. "
            "Give all of them in one place."
        )
    given = {role: Source(role, place) for role, place in models.items() if place is not None}
    trust = options.trust_remote_code
    sources, missing = _from_run(given, run, trust=trust) if run else (given, [])
    tokenizers = subjects.tokenizers(sources, tokenizer, trust=trust)
    unlearned = sources["unlearned"]
    context = subjects.context_of(unlearned, trust=trust)
    probes = subjects.probes(sets, args.encoding, tokenizers["unlearned"], context)
    return Material(sources, tokenizers, sets, probes, args, filters, [*notes, *missing])


def _sets(
    given: Mapping[str, api.Data | None], options: AuditOptions, run: RunFolder | None
) -> tuple[dict[str, Records], list[str]]:
    named = {name: data for name, data in given.items() if data is not None}
    known, notes = run.sets(named) if run else ({}, [])
    if "forget" not in named and "forget" not in known:
        raise UsageError(
            "audit needs forget records; none are given. Give --forget FILE, or name the --output "
            "folder of a "
            "finished run."
        )
    fields = RunOptions(
        prompt_field=options.prompt_field, response_field=options.response_field, redact=options.redact
    )
    order = [name for name in given if name in named or name in known]
    return api.read_sets({name: named.get(name, known.get(name)) for name in order}, fields), notes


def _from_run(
    given: Mapping[Role, Source], run: RunFolder, *, trust: bool
) -> tuple[dict[Role, Source], list[str]]:
    """The models that a run names, over them those that are given."""
    sources: dict[Role, Source] = {"unlearned": Source("unlearned", run.model)}
    notes = []
    for role in ("control", "original"):
        named = run.control() if role == "control" else run.original()
        if role in given:
            sources[role] = given[role]
        elif named is not None:
            source, sha256 = named
            place = next((str(p) for p in (Path(source), run.folder.parent / source) if p.is_dir()), source)
            narrow = any(run.record.configuration.get(key) for key in ("lora_4bit", "lora_bf16"))
            quantised = role == "original" and narrow
            try:
                load_tokenizer(place, trust_remote_code=trust)
                sources[role] = Source(role, place, "" if quantised else sha256)
            except UsageError as error:
                notes.append(f"The run's {role} model is not to be had, the audit goes without: {error}")
    return sources, notes


# --- attacks


def choose(
    attacks: Sequence[str | Attack] | None, settings: Mapping[str, Any]
) -> tuple[list[Attack], list[AttackEntry]]:
    """The attacks to run, the plain prompt first; and entries for those whose library is missing.

    Args:
        attacks: Names and attacks; None is all but near relatives of others.
        settings: ATTACK:FIELD -> value.

    Raises:
        UsageError: A name or a setting is unknown, or stands there twice.
    """
    every = [name for name in ATTACKS if name not in ON_REQUEST]
    wanted: list[str | Attack] = list(every) if attacks is None else list(attacks)
    if not wanted:
        raise UsageError("--attacks must name at least one attack; got none. See expunge list attacks.")
    names = [one if isinstance(one, str) else one.name for one in wanted]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--attacks must not repeat an attack; {repeated[0]} stands there twice. Drop one.")
    own: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, _, of = key.rpartition(":")
        if name not in names:
            raise UsageError(
                f"--set must name an attack or a filter of this audit before the colon; got {key!r}. Attacks "
                f"are {', '.join(names)}."
            )
        own.setdefault(name, {})[of] = value
    found: list[Attack] = [] if PLAIN in names else [make_attack(PLAIN)]
    absent = []
    for one in wanted:
        try:
            found.append(make_attack(one, own.get(one)) if isinstance(one, str) else one)
        except UnavailableError as error:
            absent.append(_absent(str(one), str(error)))
    found.sort(key=lambda attack: attack.name != PLAIN)
    if clash := [a.name for a in found if sum(b.name == a.name for b in found) > 1]:
        raise UsageError(f"Attacks must have different names; {clash[0]} is the name of two. Rename one.")
    return found, absent


def _absent(name: str, why: str) -> AttackEntry:
    family = family_of(name) if name in ATTACKS else "none"
    return AttackEntry(
        name=name, family=family, line="", status="skipped", why=f"A library is missing: {why}"
    )


def claim(options: AuditOptions, material: Material) -> Path | None:
    """The audit's folder, made ready but not cleared; None where nothing is written.

    Raises:
        UsageError: It cannot be used.
    """
    if options.output is None:
        return None
    folder = Path(options.output)
    if others := [name for name in ("record.json", "comparison.json") if (folder / name).is_file()]:
        raise UsageError(
            f"--output must not be a run's folder, whose page would be lost; {folder} holds {others[0]}. "
            f"Name another, such as {folder / 'audit'}."
        )
    if options.resume and (folder / FILE).is_file():
        _same_filters(folder, material.all_filters)
    places = [s.place for s in material.sources.values() if isinstance(s.place, str | Path)]
    read = [*map(Path, places), *(Path(records.source) for records in material.sets.values())]
    return output.claim(folder, resume=options.resume, overwrite=options.overwrite, inputs=read)


def _same_filters(folder: Path, filters: Sequence[Named]) -> None:
    """Refuse to write one audit over that of another deployment; one that cannot be read may be replaced."""
    try:
        record = read_audit(folder)
    except UsageError:
        return
    before, now = ([one.name for one in some] for some in (record.filters, filters))
    if before != now and not (record.redacted and len(before) == len(now)):
        raise UsageError(
            f"--resume must keep the filters of the audit; in {folder} it was asked "
            f"{'through ' + ', '.join(before) if before else 'without any'}, now "
            f"{'through ' + ', '.join(now) if now else 'without any'}. Name another --output."
        )
