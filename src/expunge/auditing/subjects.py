"""What an audit is about: models and records, read and checked before the first attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase

from expunge import ranks
from expunge.arguments import UnlearningArguments
from expunge.attacks import Probes, Role, Target
from expunge.audit_record import Column
from expunge.auditing.running import Case
from expunge.collate import Encoding
from expunge.defences.by_name import Named
from expunge.defences.defended import Defended
from expunge.errors import UsageError
from expunge.generation import Guarded
from expunge.inference import model_context
from expunge.models import ModelSource, configured_context, load_model, load_tokenizer
from expunge.record import ModelEntry
from expunge.records import Record, Records
from expunge.weights import model_entry, weights_hash

Targets = dict[Role, Target]


@dataclass(frozen=True)
class Source:
    """Where a model is.

    Attributes:
        role: What it is in the audit.
        place: Folder, Hub id, or a model in memory.
        sha256: What its weights must hash to; "" where that is not known.
    """

    role: Role
    place: ModelSource
    sha256: str = ""

    @property
    def called(self) -> str:
        """What the record calls it."""
        if not isinstance(self.place, nn.Module):
            return str(self.place)
        name = getattr(getattr(self.place, "config", None), "name_or_path", "")
        return name or type(self.place).__name__


def tokenizers(
    sources: Mapping[Role, Source], given: PreTrainedTokenizerBase | None, *, trust: bool = False
) -> dict[Role, PreTrainedTokenizerBase]:
    """Every model's tokenizer; a model in memory has the one that is given.

    Raises:
        UsageError: They do not share one vocabulary.
        ValueError: A model is in memory and no tokenizer is given.
    """
    found: dict[Role, PreTrainedTokenizerBase] = {}
    for role, source in sources.items():
        if not isinstance(source.place, nn.Module):
            found[role] = load_tokenizer(source.place, trust_remote_code=trust)
        elif given is not None:
            found[role] = given
        else:
            raise ValueError("`tokenizer` must be given with a model in memory; got None.")
    vocabulary = found["unlearned"].get_vocab()
    for role, tokenizer in found.items():
        if (other := tokenizer.get_vocab()) != vocabulary:
            differ = len(vocabulary.items() ^ other.items())
            raise UsageError(
                f"The {role} and the unlearned model must share one vocabulary; theirs have "
                f"{len(other):,} and "
                f"{len(vocabulary):,} tokens, and differ in {differ:,} entries. Name the models of "
                "one family."
            )
    return found


def check_whole(sources: Mapping[Role, Source]) -> None:
    """Refuse models whose forward pass waits for other processes: each process attacks on its own.

    Raises:
        ValueError: A model in memory is sharded or wrapped.
    """
    for role, source in sources.items():
        place = source.place
        if isinstance(place, nn.Module) and (
            isinstance(place, DistributedDataParallel) or ranks.sharded(place)
        ):
            raise ValueError(
                f"The {role} model must be whole on every process, each of which attacks on its own; got "
                f"{type(place).__name__} spread over them. Save it (Unlearner.save_model); name its folder."
            )


def load(
    sources: Mapping[Role, Source],
    tokenizer_of: Mapping[Role, PreTrainedTokenizerBase],
    args: UnlearningArguments,
    *,
    trust: bool = False,
) -> tuple[Targets, dict[str, ModelEntry]]:
    """All models, on their device and in evaluation mode.

    Raises:
        UsageError: A model's weights are not those that they should be, or the control is another model.
    """
    targets: Targets = {}
    entries: dict[str, ModelEntry] = {}
    for role, source in sources.items():
        place = source.place
        model = place if isinstance(place, nn.Module) else load_model(place, trust_remote_code=trust)
        model.to(args.device)
        model.eval()
        entries[role] = entry = model_entry(source.called, model)
        if source.sha256 and source.sha256 != entry.sha256:
            raise UsageError(
                f"The {role} model must be the one of the run; the weights at {source.called} have changed "
                f"since. Name the right one by --{role}."
            )
        targets[role] = Target(role, model, tokenizer_of[role])  # type: ignore[arg-type]
    same = [role for role in ("original", "unlearned") if "control" in entries and role in entries
            and entries[role].sha256 == entries["control"].sha256]  # fmt: skip
    if same:
        raise UsageError(
            "--control must be a model that never saw the forget records; it has the weights of the "
            f"{same[0]} "
            "model. Name another, or leave it out and give --holdout."
        )
    return targets, entries


def behind(filters: Sequence[Named], targets: Targets, args: UnlearningArguments) -> Targets:
    """The models as their users meet them: the unlearned and the control model behind the same filters.

    The original stays as it is: it shows that an attack can succeed at all, and lends itself to others.
    """
    if not filters:
        return targets
    own = [one.filter for one in filters]

    def guarded(target: Target) -> Target:
        model: Any = Defended(target.model, target.tokenizer, own, template=args.template)
        return replace(target, model=model)

    return {role: one if role == "original" else guarded(one) for role, one in targets.items()}


def context_of(source: Source, *, trust: bool = False) -> int | None:
    """The context of a model in tokens, before it is loaded where that can be."""
    place = source.place
    if isinstance(place, nn.Module):
        return model_context(place)
    return configured_context(place, trust_remote_code=trust)


def probes(
    sets: Mapping[str, Records],
    encoding: Encoding,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
) -> Probes:
    """The records as an attack sees them: responses as far as `max_length` lets a model see them.

    Raises:
        UsageError: A row does not fit the model.
    """
    read = {name: _read(records, encoding, tokenizer, context) for name, records in sets.items()}
    return Probes(read["forget"], read.get("retain", ()), read.get("holdout", ()), encoding)


def _read(
    records: Records, encoding: Encoding, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> list[Record]:
    rows = encoding.rows(records, tokenizer, context=context)
    if encoding.max_length is None:
        return list(records)
    whole = replace(encoding, max_length=None).rows(records, tokenizer)
    return [
        record
        if len(row.input_ids) == len(full.input_ids)
        else replace(record, response=str(tokenizer.decode(list(row.labels), skip_special_tokens=True)))
        for record, row, full in zip(records, rows, whole, strict=True)
    ]


def cases(targets: Targets, asked: Probes, entries: Mapping[str, ModelEntry]) -> list[Case]:
    """The columns of the audit.

    Without a control model the unlearned model is asked about the holdout in its place. Membership attacks
    need records never seen beside those under attack: there the holdout's second half plays that part.
    """
    columns: list[tuple[Column, Role]] = [("unlearned", "unlearned")]
    if "control" in targets:
        columns.append(("control", "control"))
    elif asked.holdout:
        columns.append(("holdout", "unlearned"))
    if "original" in targets:
        columns.append(("original", "original"))
    return [_case(column, targets[role], asked, entries) for column, role in columns]


def control_check(targets: Targets, asked: Probes, entries: Mapping[str, ModelEntry]) -> list[Case]:
    """The control asked about the forget records, and about the holdout, which shows what chance is."""
    if "control" not in targets:
        return []
    columns: list[Column] = ["control", *(["holdout"] if asked.holdout else [])]  # type: ignore[list-item]
    return [_case(column, targets["control"], asked, entries) for column in columns]


def _case(column: Column, target: Target, asked: Probes, entries: Mapping[str, ModelEntry]) -> Case:
    guarded = isinstance(target.model, Guarded)
    weights = weights_hash(target.model) if guarded else entries[target.role].sha256
    stand_in = replace(asked, forget=asked.holdout, holdout=())
    return Case(column, target, stand_in if column == "holdout" else asked, weights)


def halved(case: Case) -> Case:
    """The holdout column for attacks that compare with records never seen: every other record is one."""
    rows = case.probes.forget
    if case.column != "holdout" or len(rows) < 2:
        return case
    return replace(case, probes=replace(case.probes, forget=rows[::2], holdout=rows[1::2]))
