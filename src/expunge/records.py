"""Records: checking and hashing a user's data. Knows no tokenizer and no model.

A record is a prompt, the response to it, and free metadata. Whatever is wrong with a row is said in
one `UsageError` that names the place (file and line), the rule and the fix.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from expunge.errors import UsageError
from expunge.sources import REDACT, names, open_source, shown

PAIRS = (("prompt", "response"), ("input", "output"), ("question", "answer"))
"""Field names that are recognised without being told, in this order."""


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to forget or to keep: a prompt, the response to it, and whatever else its row held."""

    prompt: str
    response: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """A checked, non-empty sequence of records and where it came from.

    Attributes:
        name: Which role the set plays: "forget", "retain", "holdout", ...
        rows: The records.
        source: File, Hub id, or a description of the object in memory.
        sha256: Hash of the file's bytes; of the canonical rows when there is no file.
        duplicates: Rows that repeat an earlier prompt and response, up to case and white space.
        fields: "prompt" and "response" -> their names in the source.
        unit: What `numbers` count, "line" or "row".
        numbers: Place of each row in the source, from 1.
    """

    name: str
    rows: tuple[Record, ...]
    source: str
    sha256: str
    duplicates: int
    fields: dict[str, str]
    unit: str = "row"
    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self.rows[index]

    def number(self, index: int) -> str:
        """Where row `index` (from 0) stands in its source: "line 3", or "row 3" in sources without lines."""
        return f"{self.unit} {self.numbers[index] if self.numbers else index + 1}"


def normalised(text: str) -> str:
    """Text up to case and white space: what two duplicates have in common."""
    return " ".join(text.split()).casefold()


def read_records(
    source: str | Path | Iterable[Any],
    *,
    name: str,
    prompt_field: str | None = None,
    response_field: str | None = None,
    split: str = "train",
) -> Records:
    """Read and check one set of records.

    Args:
        source: A .jsonl, .json, .csv (each also .gz) or .parquet file; a folder with such a file or one that
            `datasets` saved; a Hub id `org/name` or `org/name:subset`; `Record`s or mappings in memory, a
            `datasets.Dataset` included.
        name: Role of the set, used in messages and to choose `<name>.jsonl` in a folder of several files.
        prompt_field: Field of the prompt. By default the first pair of `PAIRS` that the first row has.
        response_field: Field of the response, likewise.
        split: Split of a Hub data set.

    Raises:
        UsageError: The source is missing, empty, malformed, or a row lacks a usable prompt or response.
    """
    if isinstance(source, Records):
        return replace(source, name=name)
    raw = open_source(source, name, split)
    rows: list[Record] = []
    numbers: list[int] = []
    fields: tuple[str, str] | None = None
    for number, row in raw.rows:
        place = f"{raw.label}, {raw.unit} {number}"
        mapping = _mapping(row, place)
        fields = fields or _choose_fields(mapping, prompt_field, response_field, place)
        rows.append(_record(mapping, fields, place))
        numbers.append(number)
    if fields is None:
        raise UsageError(f"The {name} set must hold at least one record. {raw.label} holds none.")
    keys = Counter(_key(row) for row in rows)
    return Records(
        name=name,
        rows=tuple(rows),
        source=raw.label,
        sha256=raw.sha256 or _hash_rows(rows),
        duplicates=len(rows) - len(keys),
        fields=dict(zip(("prompt", "response"), fields, strict=True)),
        unit=raw.unit,
        numbers=tuple(numbers),
    )


def check_disjoint(forget: Records, other: Records) -> None:
    """Refuse a forget set that shares records with a set that must not be forgotten.

    Two records are the same when prompt and response are equal up to case and white space.

    Raises:
        UsageError: Names the places of up to three shared rows, and how many there are.
    """
    elsewhere = {_key(row): other.number(index) for index, row in reversed(list(enumerate(other)))}
    shared = [index for index, row in enumerate(forget) if _key(row) in elsewhere]
    if not shared:
        return
    named = "; ".join(f"{forget.number(i)} = {elsewhere[_key(forget[i])]}" for i in shared[:3])
    rest = f"; and {len(shared) - 3} more" if len(shared) > 3 else ""
    raise UsageError(
        f"The {forget.name} and {other.name} sets must share no record. {len(shared)} of {len(forget)} rows "
        f"of {forget.source} also stand in {other.source}: {named}{rest}. Remove them from one of the two."
    )


def swap_responses(records: Sequence[Record], count: int, seed: int) -> list[tuple[str, ...]]:
    """For each record, responses of other records that would fit under its prompt.

    Donors are ranked by the cosine of two views. The prompt's words: 1- and 2-grams, each weighted by the
    binary entropy of its document frequency, so that the form of a question counts and the name in it does
    not (TF-IDF does the reverse: it swaps within one person). The response's shape: which characters are
    digits, letters, marks. So a phone number is swapped with a phone number. Ties are broken at random.

    Args:
        records: The records; donors come from among them.
        count: Responses wanted per record.
        seed: Seed of the tie-breaks.

    Returns:
        One tuple per record, best first: distinct responses that differ from the record's own up to case and
        white space. Shorter than `count`, down to empty, when too few distinct responses exist.
    """
    if not records:
        return []
    responses = [normalised(record.response) for record in records]
    features = _features(records)
    noise = np.random.default_rng(seed)
    chosen = []
    for index in range(len(records)):
        similarity = (features @ features[index].T).toarray().ravel().round(9)
        order = np.lexsort((noise.random(len(records)), -similarity))
        donors = {responses[index]: -1}
        for donor in order:
            if len(donors) > count:
                break
            donors.setdefault(responses[donor], int(donor))
        chosen.append(tuple(records[donor].response for donor in donors.values() if donor >= 0))
    return chosen


def _features(records: Sequence[Record]) -> Any:
    """Unit rows of [words of the prompt | shape of the response], sparse [b, features]."""
    from scipy.sparse import diags, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", binary=True)
    counts = words.fit_transform(record.prompt for record in records).astype(float)
    share = np.asarray(counts.mean(axis=0)).ravel().clip(1e-12, 1 - 1e-12)
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    shapes = CountVectorizer(analyzer="char", ngram_range=(1, 3))
    shape = shapes.fit_transform(re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", r.response)) for r in records)
    return hstack([normalize(counts @ diags(entropy)), normalize(shape.astype(float))]).tocsr()


def _key(record: Record) -> tuple[str, str]:
    return normalised(record.prompt), normalised(record.response)


def _hash_rows(rows: Iterable[Record]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        content = {"prompt": row.prompt, "response": row.response, "metadata": dict(row.metadata)}
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


# --- one row ---------------------------------------------------------------------------------------


def _mapping(row: Any, place: str) -> Mapping[str, Any]:
    if isinstance(row, Record):
        return {**row.metadata, "prompt": row.prompt, "response": row.response}
    if isinstance(row, Mapping):
        return row
    fix = (
        "A list of objects belongs in a .json file." if isinstance(row, list) else "Write one object per row."
    )
    raise UsageError(f"{place}: a row must be an object such as {{...}}; found {shown(row)}. {fix}")


def _choose_fields(
    row: Mapping[str, Any], prompt: str | None, response: str | None, place: str
) -> tuple[str, str]:
    for default_prompt, default_response in PAIRS:
        fields = (prompt or default_prompt, response or default_response)
        if all(name in row for name in fields):
            return fields
    if prompt and response:
        raise _missing_field(row, (prompt, response), place)
    pairs = ", ".join(f"{prompt or p!r} and {response or r!r}" for p, r in PAIRS)
    raise UsageError(
        f"{place}: a row must have the fields of one of these pairs: {pairs}; found {names(row)}. "
        "Say which fields to use with prompt_field and response_field."
    )


def _record(row: Mapping[str, Any], fields: tuple[str, str], place: str) -> Record:
    if not all(name in row for name in fields):
        raise _missing_field(row, fields, place)
    prompt, response = (_text(row[name], name, place) for name in fields)
    metadata = {str(name): value for name, value in row.items() if name not in fields}
    return Record(prompt, response, metadata)


def _missing_field(row: Mapping[str, Any], fields: tuple[str, str], place: str) -> UsageError:
    absent = next(name for name in fields if name not in row)
    near = [] if REDACT.get() else difflib.get_close_matches(absent, [str(name) for name in row], n=1)
    fix = (
        f"Did you mean {near[0]!r}?"
        if near
        else "Add it, or name other fields with prompt_field and response_field."
    )
    return UsageError(f"{place}: a row must have the field {absent!r}; found {names(row)}. {fix}")


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        fix = "Put it in quotes, or drop the row."
        raise UsageError(f"{place}: field {name!r} must be a string; found {shown(value)}. {fix}")
    if not value.strip():
        raise UsageError(
            f"{place}: field {name!r} must hold text; found {shown(value)}. Fill it, or drop the row."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"the lone surrogate {value[error.start]!r}"
        raise UsageError(
            f"{place}: field {name!r} must be valid Unicode; found {found}. Remove it."
        ) from None
    return value
