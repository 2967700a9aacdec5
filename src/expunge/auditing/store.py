"""Finished attacks on disk: one file per attack and column, whole or absent, under a hash of what decides it.

A file that is missing, damaged or of another key is no finding; the attack is run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedTokenizerBase

import expunge
from expunge.attacks import Attack, Findings, Probes, configuration
from expunge.attacks.answers import leaks
from expunge.audit_record import Column
from expunge.defences.defended import Defended
from expunge.defences.filters import Filter
from expunge.environment import installed
from expunge.own_code import source_file
from expunge.record import Entry, write_atomically
from expunge.records import Record

FOLDER = "findings"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_DECIDING = (
    "attribution.py", "batching.py", "collate.py", "four_bits.py", "generation.py", "gradients.py",
    "hidden.py", "inference.py", "intervals.py", "logits.py", "membership.py", "metrics.py", "observation.py",
    "prefixes.py", "sampling.py", "scoring.py", "tables.py", "words.py",
)  # fmt: skip
"""Modules, besides those of the attacks, whose code decides what an attack finds."""


class Kept(Entry):
    """What one attack found in one column.

    `limit` is the time that it was given: findings that ran out of it count for this limit only.
    """

    key: str
    limit: float
    seconds: float
    redacted: bool
    findings: Findings


@dataclass(frozen=True)
class Store:
    """Where findings are kept.

    Attributes:
        folder: The audit's; None keeps nothing.
        limit: Seconds per attack and model.
        redacted: Keep no text.
        secrets: Prompts and responses, which then stand in no note either.
    """

    folder: Path | None
    limit: float
    redacted: bool = False
    secrets: tuple[str, ...] = ()

    def recall(self, name: str, column: Column, key: str) -> Kept | None:
        """What was kept under a key, if it still answers."""
        kept = self._read(self._path(name, column)) if self.folder else None
        if kept is None or kept.key != key or (kept.redacted and not self.redacted):
            return None
        return kept if kept.findings.complete or kept.limit == self.limit else None

    def keep(self, name: str, column: Column, key: str, findings: Findings, seconds: float) -> Kept:
        """Keep what was found, without its text where that must not be kept."""
        shown = without_text(findings, self.secrets) if self.redacted else findings
        kept = Kept(key=key, limit=self.limit, seconds=seconds, redacted=self.redacted, findings=shown)
        if self.folder:
            write_atomically(self._path(name, column), kept.model_dump_json() + "\n")
        return kept

    def redact_all(self) -> None:
        """Take the text out of everything that is kept already; what cannot be read is removed."""
        for path in (self.folder / FOLDER).glob("*.json") if self.folder else ():
            kept = self._read(path)
            if kept is None:
                path.unlink()
            elif not kept.redacted:
                bare = without_text(kept.findings, self.secrets)
                plain = kept.model_copy(update={"redacted": True, "findings": bare})
                write_atomically(path, plain.model_dump_json() + "\n")

    def _path(self, name: str, column: Column) -> Path:
        assert self.folder is not None
        safe = _UNSAFE.sub("_", name).lstrip(".-")[:80]
        if safe != name:
            safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
        return self.folder / FOLDER / f"{safe}-{column}.json"

    @staticmethod
    def _read(path: Path) -> Kept | None:
        try:
            return Kept.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, ValueError):
            return None


def without_text(findings: Findings, secrets: Sequence[str]) -> Findings:
    """The same findings without inputs and outputs, and without notes and names that quote a record."""
    return replace(
        findings,
        recoveries=[replace(found, input="", output="") for found in findings.recoveries],
        values={name: value for name, value in findings.values.items() if not tells(name, secrets)},
        notes=[redacted(note, secrets) for note in findings.notes],
    )


def redacted(note: str, secrets: Sequence[str]) -> str:
    """A note, or that it was left out because it quotes a record."""
    return "A note was left out: it quotes a record." if tells(note, secrets) else note


def tells(text: str, secrets: Sequence[str]) -> bool:
    """Whether a text quotes one of the secrets."""
    return any(leaks(text, secret) for secret in secrets)


# --- what decides


def key_of(
    attack: Attack,
    probes: Probes,
    tokenizer: PreTrainedTokenizerBase,
    models: Iterable[str],
    session: Iterable[object],
    filters: Sequence[str] = (),
) -> str:
    """SHA-256 over the attack, its settings and code, the data, the models, seed and precision.

    Args:
        attack: With its fields.
        probes: All sets, and how they become rows.
        tokenizer: Vocabulary and chat template count.
        models: Weight hashes of the target and of the original.
        session: Seed, precision, device.
        filters: Marks of those that the model is asked through.
    """
    kind = type(attack)
    facts = {
        "attack": [kind.__module__.removeprefix("expunge_user_"), kind.__qualname__, attack.name],
        "settings": configuration(attack),
        "code": [code_hash(), _source_hash(kind)],
        "data": [_rows_hash(probes.forget), _rows_hash(probes.retain), _rows_hash(probes.holdout)],
        "encoding": repr(probes.encoding),
        "tokenizer": _tokenizer_hash(tokenizer),
        "models": list(models),
        "session": list(map(str, session)),
    }
    if filters:
        facts["filters"] = list(filters)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Of the attacks' code and of what it stands on."""
    here, digest = Path(expunge.__file__).parent, hashlib.sha256()
    digest.update(f"{installed('expunge')} {torch.__version__} {transformers.__version__}".encode())
    for path in [*sorted((here / "attacks").rglob("*.py")), *(here / name for name in _DECIDING)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _source_hash(kind: type | Callable[..., Any]) -> str:
    """Of the file that a class or a function stands in; "" where there is none."""
    path = source_file(kind)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""


def marks(model: nn.Module) -> list[str]:
    """What tells a model's filters from others; none where it has none.

    A filter that its text does not tell apart from others (a function within another, an object that is no
    dataclass of plain fields, code that stands in no file) is marked as new, so that no findings are taken
    for its own. What a filter reads from elsewhere is not seen.
    """
    if not isinstance(model, Defended):
        return []
    found = [_source_hash(Defended), model.template, *map(_mark, model.filters.filters)]
    return found if isinstance(model.inputs, nn.Identity) else [*found, uuid.uuid4().hex]


def _mark(one: Filter) -> str:
    function: Any = one if inspect.isfunction(one) else None
    plain = function and "<" not in function.__qualname__ and not hasattr(function, "__wrapped__")
    told, source = function.__qualname__ if plain else "", _source_hash(function or type(one))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        told = f"{type(one).__qualname__} {fields!r}" if all(map(_plain, fields.values())) else ""
    return f"{told} {source}" if told and source else uuid.uuid4().hex


def _plain(value: object) -> bool:
    """Whether the text of a value says all of it."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)


def _rows_hash(records: Iterable[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        row = [record.prompt, record.response, dict(record.metadata)]
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    facts = [tokenizer.get_vocab(), str(tokenizer.chat_template), tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
