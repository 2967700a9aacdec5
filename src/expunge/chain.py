"""Erasure requests one after another: the runs that a run continues, read again and verified.

Every record of a chain names the hash of its predecessor's, so that none can be changed or left out unseen.
Knows records on disk and records to forget; knows no model.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import UsageError
from expunge.four_bits import FOUR_BIT
from expunge.record import Evaluation, ModelEntry, Predecessor, RunRecord, read_record
from expunge.records import Record, Records, check_disjoint, normalised, read_records

PREFIX = "forgotten-"
"""Split of an earlier request's records: `forgotten-1`, `forgotten-2`, …"""


@dataclass(frozen=True)
class Chain:
    """Runs that have ended, first to last, and what each of them was asked to forget.

    Attributes:
        folder: Of the last one.
        records: Of all.
        record_sha256: Hash of the last one's `record.json`.
        earlier: `forgotten-1` -> records that the first request removed, and so on.
    """

    folder: Path
    records: tuple[RunRecord, ...]
    record_sha256: str
    earlier: Mapping[str, Records]

    @property
    def first(self) -> ModelEntry:
        """The model before the first request."""
        return self.records[0].models["before"]

    @property
    def result(self) -> ModelEntry:
        """The model that the last request left."""
        return self.records[-1].models["after"]

    @property
    def forgotten(self) -> Records:
        """The records of all earlier requests as one set, each once."""
        seen: dict[tuple[str, str], Record] = {}
        for records in self.earlier.values():
            for row in records:
                seen.setdefault(_key(row), row)
        whole = read_records(list(seen.values()), name="forgotten")
        return dataclasses.replace(whole, source=f"forget sets of {len(self.earlier)} earlier requests")

    def entry(self, first_evaluation: Evaluation | None) -> Predecessor:
        """What the record of the run that comes next says of this chain."""
        return Predecessor(
            folder=str(self.folder),
            record_sha256=self.record_sha256,
            request=len(self.records) + 1,
            first=self.first,
            first_evaluation=first_evaluation,
        )

    def check_sets(self, sets: Mapping[str, Records]) -> list[str]:
        """Refuse to keep, or to take for unseen, what an earlier request removed.

        Returns:
            What a reader of the record must know: forget records that were asked for before.

        Raises:
            UsageError: A retain or holdout record stands in an earlier forget set.
        """
        for (name, earlier), kind in ((e, k) for e in self.earlier.items() for k in ("retain", "holdout")):
            if kind in sets:
                _check_apart(name, earlier, sets[kind])
        again = {_key(row) for row in self.forgotten}
        repeated = sum(_key(row) in again for row in sets.get("forget", ()))
        return [f"{repeated} forget records were asked for by an earlier request too."] if repeated else []

    def check_result(self, sha256: str, given: bool) -> None:
        """Refuse a model that is not what the last request left.

        Raises:
            UsageError: The hash of its weights is another.
        """
        if sha256 == self.result.sha256:
            return
        if given:
            raise UsageError(
                f"--model must be the result of the run in {self.folder} when --after names it; its weights "
                "differ. Leave --model out."
            )
        place = self.folder / "model"
        fix = "Restore them."
        if self.result.dtype in FOUR_BIT:
            fix = "Restore them, or go on where it ran: another device may round 4-bit codes otherwise."
        raise UsageError(
            f"{place} must hold the model that its record.json names; the weights differ: they were changed "
            f"after the run. {fix}"
        )

    def check_first(self, sha256: str, source: str) -> None:
        """Refuse a model that is not the one before the first request.

        Raises:
            UsageError: The hash of its weights is another.
        """
        if sha256 != self.first.sha256:
            raise UsageError(
                f"{source} must be the model before the first request, which utility is accounted against; "
                "its weights differ from those that the first record names. Name it by --original."
            )


def read_chain(folder: Path, moved: Sequence[Any] = ()) -> Chain:
    """The run in a folder and all that it continued, verified, with their forget sets as they were.

    Args:
        folder: Output folder of a finished run.
        moved: Where the earlier forget sets lie now, one per request in their order; empty: where the records
            name them.

    Raises:
        UsageError: A run has not ended or left no model; a record or a forget set is missing or has changed;
            records do not fit each other.
    """
    folders, records = _walk(folder)
    if moved and len(moved) != len(records):
        raise UsageError(
            f"--forgotten must name one forget set per earlier request ({len(records)}), in their order; "
            f"got {len(moved)}."
        )
    sources = moved or [None] * len(records)
    earlier = {
        f"{PREFIX}{number}": _forget_set(record, number, place, source)
        for number, (record, place, source) in enumerate(zip(records, folders, sources, strict=True), start=1)
    }
    _check_links(records, folders, earlier)
    return Chain(folder, tuple(records), record_hash(folder), earlier)


def _walk(folder: Path) -> tuple[list[Path], list[RunRecord]]:
    """Folders and records from the first run to the one in `folder`; each hash is checked on the way."""
    folders, records = [folder], [_finished(folder)]
    while (link := records[0].after) is not None:
        place = _place(link, folders[0])
        if record_hash(place) != link.record_sha256:
            raise UsageError(
                f"The chain of {folder} is broken: {place / 'record.json'} is not the record that "
                f"{folders[0]} continued; it has changed since. Restore it."
            )
        folders.insert(0, place)
        records.insert(0, _finished(place))
        if (before := records[0].after) is not None and before.request != link.request - 1:
            raise _broken(folder, f"{place} says that it was request {before.request}")
    if (last := records[-1].after) is not None and last.request != len(records):
        raise _broken(folder, f"it says that it was request {last.request}; {len(records) - 1} came before")
    return folders, records


def _place(link: Predecessor, successor: Path) -> Path:
    found = predecessor(link, successor)
    if found is None:
        raise _broken(successor, f"{link.folder}, which it continued, holds no record.json any more")
    return found


def _finished(folder: Path) -> RunRecord:
    """The record of a run that has ended well and left its model."""
    record = read_record(folder)
    rule = f"--after must name the folder of a finished run; the one in {folder}"
    if record.kind not in ("run", "demo"):
        raise UsageError(f"{rule} is of kind {record.kind}. Name the --output of expunge run.")
    if record.stop is None or record.stop.reason == "interrupted" or "after" not in record.models:
        raise UsageError(f"{rule} has not ended, or left no model. Finish it with --resume.")
    if "forget" not in record.data or not (folder / "model").is_dir():
        raise UsageError(f"{rule} lacks {'model/' if 'forget' in record.data else 'a forget set'}.")
    return record


def _check_links(
    records: Sequence[RunRecord], folders: Sequence[Path], earlier: Mapping[str, Records]
) -> None:
    """Every run began with the model that the one before it left, and re-tested what had been forgotten."""
    for number in range(1, len(records)):
        record, last, link = records[number], records[number - 1], records[number].after
        if record.models["before"].sha256 != last.models["after"].sha256:
            raise _broken(folders[number], f"it did not begin with the model that {folders[number - 1]} left")
        if link is None or link.first.sha256 != records[0].models["before"].sha256:
            raise _broken(folders[number], f"it was not accounted against the first model of {folders[0]}")
        for name in list(earlier)[:number]:
            known = record.data.get(name)
            if known is None or known.sha256 != earlier[name].sha256:
                raise _broken(folders[number], f"its {name} is not what was forgotten then")


def _forget_set(record: RunRecord, number: int, folder: Path, moved: Any) -> Records:
    """What a request was asked to forget, read again; it must not have changed."""
    entry, name = record.data["forget"], f"{PREFIX}{number}"
    source = entry.source.split(", split ")[0] if moved is None else moved
    try:
        found = read_records(
            source,
            name="forget",
            prompt_field=entry.fields.get("prompt"),
            response_field=entry.fields.get("response"),
        )
    except UsageError as error:
        raise UsageError(
            f"The forget set of request {number} ({folder}) must be readable, to test it again: {error} Say "
            "where it lies now with --forgotten FILE, once for every earlier request, in their order."
        ) from None
    if found.sha256 != entry.sha256:
        raise UsageError(
            f"The forget set of request {number} must be what it was: {found.source} has changed since the "
            f"run in {folder} (another hash). Restore it, or name the right file by --forgotten."
        )
    return dataclasses.replace(found, name=name)


def _key(record: Record) -> tuple[str, str]:
    return normalised(record.prompt), normalised(record.response)


def _check_apart(name: str, earlier: Records, kept: Records) -> None:
    try:
        check_disjoint(earlier, kept)
    except UsageError as error:
        request = name.removeprefix(PREFIX)
        raise UsageError(f"The {kept.name} set holds what request {request} removed. {error}") from None


def _broken(folder: Path, why: str) -> UsageError:
    return UsageError(f"The chain of {folder} is broken: {why}. Restore the folders of all earlier requests.")


def predecessor(link: Predecessor, successor: Path) -> Path | None:
    """Where the predecessor lies: as named, or beside its successor when both have moved; None: nowhere."""
    named = Path(link.folder)
    places = [named, successor.resolve().parent / named.name]
    return next((place for place in places if (place / "record.json").is_file()), None)


def record_hash(folder: Path) -> str:
    """Hash of the bytes of a folder's `record.json`."""
    return hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()


def earlier_splits(splits: Iterable[str]) -> list[str]:
    """Splits that hold earlier requests' records, in the order of the requests."""
    found = [split for split in splits if split.startswith(PREFIX) and split[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda split: int(split[len(PREFIX) :]))
