"""TOFU's sets, from a local folder or from the Hub; what is missing or malformed is refused by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from expunge.errors import UsageError
from expunge.records import Record, Records, read_records
from expunge.sources import shown

HUB = "locuslab/TOFU"

FORGET = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""Forget set -> the retain set that is the rest of the 4,000 questions."""

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Set:
    """Records of one set, with the answers that its truth ratio compares; one entry per record."""

    records: Records
    paraphrased: Sequence[Record]
    perturbed: Sequence[Sequence[Record]]


def check_forget(forget: str) -> str:
    """The name of a forget set.

    Raises:
        UsageError: There is no such set.
    """
    if forget in FORGET:
        return forget
    near = difflib.get_close_matches(str(forget), FORGET, n=1)
    fix = f"Did you mean {near[0]}?" if near else "Choose one of them."
    raise UsageError(f"TOFU's forget set must be one of {', '.join(FORGET)}; got {forget!r}. {fix}")


def training_sets(data: Path | str, forget: str = "forget10") -> dict[str, Records]:
    """The sets that an unlearning run trains with: forget, its retain, and holdout where it is present.

    Args:
        data: Folder, or Hub id.
        forget: "forget01", "forget05" or "forget10".

    Raises:
        UsageError: A set is missing or malformed.
    """
    names = {"forget": check_forget(forget), "retain": FORGET[forget]}
    sets = {role: read_set(data, name, role) for role, name in names.items()}
    holdout = read_holdout(data, forget)
    return sets if holdout is None else sets | {"holdout": holdout}


def read_question_set(data: Path | str, name: str, role: str, rows: int | None) -> Set:
    """One evaluation set with its alternative answers.

    Args:
        data: Folder, or Hub id.
        name: File, or subset on the Hub: "forget10_perturbed".
        role: What the set is called from here on: "forget".
        rows: Keep the first so many.

    Raises:
        UsageError: The set is missing, or a row lacks its alternative answers.
    """
    records = cut(read_set(data, name, role), rows)
    paraphrased, perturbed = [], []
    for index, record in enumerate(records):
        place = f"{records.source}, {records.number(index)}"
        truth = record.metadata.get("paraphrased_answer") or record.response
        paraphrased.append(Record(record.prompt, _answers([truth], "paraphrased_answer", place)[0]))
        wrong = _answers(record.metadata.get("perturbed_answer"), "perturbed_answer", place)
        perturbed.append([Record(record.prompt, answer) for answer in wrong])
    return Set(records, paraphrased, perturbed)


def read_holdout(data: Path | str, forget: str) -> Records | None:
    """Questions about authors that no model was trained on; None where a folder does not hold them."""
    name = forget.replace("forget", "holdout")
    if _is_hub(data) or _file(Path(data), name):
        return read_set(data, name, "holdout")
    return None


def read_set(data: Path | str, name: str, role: str) -> Records:
    """One set as it is stored.

    Raises:
        UsageError: There is neither a folder with that set nor a Hub id.
    """
    if _is_hub(data):
        return read_records(f"{data}:{name}", name=role, prompt_field="question", response_field="answer")
    file = _file(Path(data), name)
    if file is None:
        raise UsageError(
            f"{_found(Path(data), name)} Get TOFU from the Hub ({HUB}), or name that id as data."
        )
    return read_records(file, name=role, prompt_field="question", response_field="answer")


def cut(records: Records, rows: int | None) -> Records:
    """The first `rows` records; all of them if None."""
    return records if rows is None else replace(records, rows=records.rows[:rows])


def _is_hub(data: Path | str) -> bool:
    path = Path(data)
    return not path.exists() and not path.parent.exists() and bool(_HUB_ID.fullmatch(str(data)))


def _file(folder: Path, name: str) -> Path | None:
    return next(
        (folder / (name + suffix) for suffix in _SUFFIXES if (folder / (name + suffix)).is_file()), None
    )


def _found(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"TOFU's data must be a folder; there is none at {folder}."
    files = [path.name for path in sorted(folder.iterdir()) if path.name.endswith(_SUFFIXES)]
    near = difflib.get_close_matches(name, files, n=3, cutoff=0.3)
    return f"{folder} must hold {name}.jsonl (or .jsonl.gz); found {', '.join(near) or 'nothing like it'}."


def _answers(found: object, field: str, place: str) -> list[str]:
    answers = found if isinstance(found, list) else [found]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UsageError(
            f"{place}: field {field!r} must hold text or a list of texts; found {shown(found)}. "
            f"Use the *_perturbed files of {HUB}."
        )
    return list(answers)
