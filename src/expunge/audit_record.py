"""The typed, versioned record of an audit: everything its page shows, and nothing it must guess.

Written to `audit.json`. This module knows no model and no plot. A change that an older reader cannot
understand raises `AUDIT_SCHEMA`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from expunge.record import DataEntry, Entry, Environment, Metric, ModelEntry, read_versioned, write_atomically

AUDIT_SCHEMA: Final = 1
FILE: Final = "audit.json"

Column = Literal["unlearned", "control", "holdout", "original"]
"""Who was asked about what. `holdout`: the unlearned model, asked about records that it never saw."""

COLUMNS: Final[tuple[Column, ...]] = ("unlearned", "control", "holdout", "original")

Word = Literal["erased", "suppressed", "not forgotten", "undecided"]
Status = Literal["done", "skipped", "failed"]
Outcome = Literal["within", "exceeds", "blunt", "unfinished", "unjudged"]


class FilterEntry(Entry):
    """What the unlearned model was asked through, and the control where the verdict says so."""

    name: str
    configuration: dict[str, Any] = Field(default_factory=dict)


class Point(Entry):
    """Recovery once a part of the budget was spent."""

    budget: float
    recovered: Metric


class CostEntry(Entry):
    """What an attack said that it would cost on one model."""

    forward_tokens: int = 0
    backward_tokens: int = 0
    generated_tokens: int = 0


class Result(Entry):
    """What one attack found in one column."""

    recovered: Metric = Field(description="share of records that came back, with its exact interval")
    score: Metric = Field(description="mean score over records, with its bootstrap interval")
    curve: list[Point] = Field(default_factory=list)
    axis: str = Field("", description="what the curve's budget counts")
    values: dict[str, Metric] = Field(default_factory=dict, description="further numbers of the attack")
    notes: list[str] = Field(default_factory=list)
    complete: bool = True
    past_filters: bool = Field(False, description="behind filters: no answer of it has passed one")
    tries: int = Field(0, description="attempts over all records")
    seconds: float = 0.0


class Judgement(Entry):
    """Recovery from the unlearned model beside that of the control."""

    outcome: Outcome = Field(
        description="within the control's interval (membership: its area no larger); exceeds it; blunt: the "
        "control gives up so much, or so few records were asked, that a difference could not be seen, or the "
        "attack reaches as many targets never seen, gets nothing out of the original, or borrows from it "
        "beside holdout records; unfinished: it did not come to an end; unjudged: no control"
    )
    sentence: str
    p_value: float | None = Field(
        None,
        description="as much found by chance, were both models alike, one-sided: by Fisher's exact test of "
        "the shares that came back; by Hanley and McNeil's of the areas under membership attacks' ROC curves",
    )


class AttackEntry(Entry):
    """One attack: what it was, whether it ran, what it found, what that means."""

    name: str
    family: str
    line: str
    configuration: dict[str, Any] = Field(default_factory=dict)
    status: Status
    why: str = Field("", description="why it was skipped or failed")
    cost: CostEntry | None = None
    results: dict[Column, Result] = Field(default_factory=dict)
    judgement: Judgement | None = None


class Answer(Entry):
    """The input that came furthest with one record, and what it gave; empty text where redacted."""

    attack: str
    input: str = ""
    output: str = ""
    score: float
    recovered: bool
    tries: int


class Worst(Entry):
    """A record that came back, or came nearest to it."""

    place: str = Field(description="where it stands in its source")
    prompt: str = ""
    response: str = ""
    answer: Answer
    attacks: list[str] = Field(description="every attack that recovered it")
    control: bool | None = Field(None, description="whether some attack recovered it from the control")


class Verdict(Entry):
    """The audit in a word and a sentence, with what a reader must weigh."""

    word: Word
    sentence: str
    reasons: list[str] = Field(default_factory=list)


class Untried(Entry):
    """An attack that was not run, or did not come to an end."""

    name: str
    why: str


class AuditRecord(Entry):
    """One audit, whole."""

    schema_version: Literal[1] = AUDIT_SCHEMA
    expunge_version: str
    kind: Literal["audit"] = "audit"
    created: str = Field(description="ISO 8601, UTC")
    configuration: dict[str, Any]
    seed: int
    redacted: bool = Field(False, description="records, inputs and outputs were left out")
    control: Literal["model", "holdout", "none"] = Field(description="what recovery is compared with")
    filters: list[FilterEntry] = Field(
        default_factory=list, description="that the unlearned and the control model were asked through"
    )
    verdict: Verdict
    attacks: list[AttackEntry]
    best: AttackEntry | None = Field(None, description="per record the worst case over the attacks that tell")
    worst: list[Worst] = Field(default_factory=list)
    untried: list[Untried] = Field(default_factory=list)
    data: dict[str, DataEntry] = Field(default_factory=dict)
    models: dict[str, ModelEntry] = Field(default_factory=dict, description="unlearned, control, original")
    environment: Environment
    timings: dict[str, float] = Field(default_factory=dict, description="phase -> wall seconds")
    peak_memory_bytes: int = 0
    notes: list[str] = Field(default_factory=list)

    def attack(self, name: str) -> AttackEntry:
        """An attack by name; KeyError if it was not tried."""
        return {entry.name: entry for entry in self.attacks}[name]


def write_audit(record: AuditRecord, folder: Path) -> Path:
    """Write `audit.json` into `folder` atomically: the file is whole or absent."""
    return write_atomically(folder / FILE, record.model_dump_json(indent=1) + "\n")


def read_audit(folder: Path) -> AuditRecord:
    """Read the `audit.json` in a folder.

    Raises:
        UsageError: The file is missing, is not an audit, or has another schema.
    """
    return read_versioned(folder / FILE, AuditRecord, AUDIT_SCHEMA, "an audit", "an audit")
