"""Does a folder hold what its record says? Hashes again of model and data, and the page rendered again.

What it shows: that files are those the record was written about. The record itself is read, not verified: one
that was forged together with the files is not found out here, unless a later run of its chain holds its hash.
Keep that hash, or the record, where others cannot write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from expunge import chain, checkpoints, output
from expunge.default_model import DEFAULT_MODEL
from expunge.environment import installed
from expunge.errors import UsageError
from expunge.file_hashes import differences
from expunge.four_bits import FOUR_BIT
from expunge.models import load_as
from expunge.record import DataEntry, ModelEntry, RunRecord, read_record
from expunge.records import read_records
from expunge.report import render
from expunge.weights import weights_hash

Verdict = Literal["verified", "readable", "differs", "not checked"]

_AFTER = "model/ (after)"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, or could not be.

    Args:
        what: Was checked.
        verdict: Of the check; "readable" is what can be said of the record itself.
        why: What differs, or why nothing could be checked; what was compared, where it is verified.
    """

    what: str
    verdict: Verdict
    why: str


def verify(folder: Path, *, trust_remote_code: bool = False) -> list[Finding]:
    """Check an output folder against its own record.

    Nothing is fetched: models and data that are not on this machine are reported as not checked.

    Args:
        folder: Holds `record.json`.
        trust_remote_code: Let the models run code of their own.

    Returns:
        Findings, those that differ among them.

    Raises:
        UsageError: There is no record, or it is not one.
    """
    if not folder.is_dir():
        raise UsageError(f"DIR must be the --output folder of a run; {folder} is no folder. Check the name.")
    record = read_record(folder)
    found = [_record(record)]
    found += _consistency(record)
    files = list(_files(record, folder))
    found += files
    for stage, entry in record.models.items():
        if stage == "after" and trust_remote_code and differing(files):
            found.append(Finding(_AFTER, "not checked", "its files differ: code among them is not run"))
        else:
            found.append(_model(stage, entry, folder, trust_remote_code))
    if "after" not in record.models and (folder / "model").is_dir():
        found.append(Finding("model/", "differs", "the record tells of no model after the run"))
    found += [_data(name, entry) for name, entry in record.data.items()]
    return [*found, *_predecessor(record, folder), _page(record, folder), *_leftovers(folder)]


def _record(record: RunRecord) -> Finding:
    """The record is what all else is compared with; there is nothing here to compare it with."""
    why = f"schema version {record.schema_version}; nothing in this folder vouches for the record itself"
    return Finding("record.json", "readable", why)


def _consistency(record: RunRecord) -> Iterator[Finding]:
    """What the record says of itself."""
    steps = [step.step for step in record.history]
    if steps != list(range(1, len(steps) + 1)):
        yield Finding("history", "differs", "its steps do not count from 1 without a gap")
    elif record.stop is not None and record.kind != "evaluate" and record.stop.step != len(steps):
        yield Finding(
            "history", "differs", f"{len(steps)} steps; the run is said to end at {record.stop.step}"
        )
    elif steps:
        yield Finding("history", "verified", f"{len(steps)} steps, without a gap")


def _files(record: RunRecord, folder: Path) -> Iterator[Finding]:
    """Every file of the saved model by its bytes: tokenizer and configuration decide what it says as well."""
    what, place = "files of model/", folder / "model"
    if record.files is None:
        if "after" in record.models:
            why = "the record names none: an earlier version wrote it. Only the weights are compared"
            yield Finding(what, "not checked", why)
        return
    if not place.is_dir():
        return  # said of the model
    wrong = list(differences(place, record.files))
    yield from (Finding(f"model/{name}", "differs", why) for name, why in wrong)
    if not wrong:
        yield Finding(what, "verified", f"{len(record.files)} files, each with the recorded SHA-256")


def _model(stage: str, entry: ModelEntry, folder: Path, trust_remote_code: bool) -> Finding:
    """The weights of a model, hashed again where they are on this machine."""
    what = _AFTER if stage == "after" else f"model {stage} ({entry.source})"
    place: str | Path = folder / "model" if stage == "after" else entry.source
    if stage == "after" and not (folder / "model").is_dir():
        return Finding(what, "differs", "the folder is missing")
    if stage != "after" and not (Path(place).is_dir() or place == DEFAULT_MODEL):
        return Finding(what, "not checked", "no folder of that name here; nothing is fetched")
    quantised = entry.dtype in FOUR_BIT
    try:  # the hash is over the bytes as they were loaded
        model = load_as(place, entry.dtype, device=torch.device("cpu"), trust_remote_code=trust_remote_code)
    except UsageError as error:
        return Finding(what, "differs" if stage == "after" and not quantised else "not checked", str(error))
    found = _compared(what, "weights", weights_hash(model), entry.sha256)
    if quantised and found.verdict == "differs":
        why = "4-bit codes made again here are others; another device or bitsandbytes may round so"
        return Finding(what, "not checked", why)
    return found


def _data(name: str, entry: DataEntry) -> Finding:
    """A data set, hashed again where its files are on this machine; several are joined by ' + '."""
    what = f"data {name} ({entry.source})"
    places = [Path(part) for part in entry.source.split(" + ")]
    if absent := [place for place in places if not place.exists()]:
        return Finding(what, "not checked", f"there is no file {absent[0]} here")
    try:
        found = " + ".join(_hash(place, name, entry.fields) for place in places)
    except (UsageError, OSError) as error:
        return Finding(what, "differs", str(error))
    return _compared(what, "content", found, entry.sha256)


def _hash(place: Path, name: str, fields: Mapping[str, str]) -> str:
    """As `read_records` takes it: of a file's bytes; of the rows where there are several files."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    named: dict[str, Any] = {f"{part}_field": field for part, field in fields.items()}
    return read_records(place, name=name, **named).sha256


def _predecessor(record: RunRecord, folder: Path) -> Iterator[Finding]:
    """The record of the run that this one continued, hashed again; its own chain is its own to verify."""
    if record.after is None:
        return
    what, place = f"predecessor ({record.after.folder})", chain.predecessor(record.after, folder)
    if place is None:
        yield Finding(what, "not checked", "there is no record.json here")
    else:
        yield _compared(what, "record", chain.record_hash(place), record.after.record_sha256)


def _page(record: RunRecord, folder: Path) -> Finding:
    """The page, rendered again from the record."""
    what, file = "report.html", folder / "report.html"
    if not file.is_file():
        return Finding(what, "differs", "the file is missing; expunge report writes it")
    if file.read_text(encoding="utf-8") == render(record):
        return Finding(what, "verified", "it is what the record renders to")
    own = installed("expunge") or "0"
    if own != record.expunge_version:
        return Finding(what, "not checked", f"rendered by {record.expunge_version}; this is {own}")
    return Finding(what, "differs", "it is not what the record renders to; expunge report writes it again")


def _leftovers(folder: Path) -> Iterator[Finding]:
    """What a killed process left behind."""
    if (last := output.last_checkpoint(folder)) is not None:
        why = f"the newest is of step {checkpoints.step_of(last)}; --resume continues from it"
        yield Finding("checkpoints/", "not checked", why)


def _compared(what: str, of: str, found: str, recorded: str) -> Finding:
    if found == recorded:
        return Finding(what, "verified", f"SHA-256 of the {of} {found[:16]}…")
    return Finding(what, "differs", f"SHA-256 of the {of} is {found[:16]}…, recorded is {recorded[:16]}…")


def differing(findings: list[Finding]) -> list[Finding]:
    """Those that make a folder unlike its record."""
    return [finding for finding in findings if finding.verdict == "differs"]
