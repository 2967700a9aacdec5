"""The typed, versioned record of one run: everything the report shows, and nothing it must guess.

This module knows no model, no data and no plot. It is written to `record.json`; `report` reads
only that file. A change that an older reader cannot understand raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.disk import writing
from expunge.errors import UsageError

_UMASK = os.umask(0o077)
os.umask(_UMASK)

SCHEMA_VERSION: Final = 1

Stage = Literal["before", "after", "control"]
Versioned = TypeVar("Versioned", bound=BaseModel)


class Entry(BaseModel):
    """A part of the record: unknown fields are refused, infinities and NaN survive JSON."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", frozen=True)


class DataEntry(Entry):
    """One data set as it was read."""

    source: str
    sha256: str = Field(description="hash of the file's bytes, or of the canonical rows if there is no file")
    rows: int
    duplicates: int = Field(0, description="rows that repeat an earlier row of the same set")
    fields: dict[str, str] = Field(default_factory=dict, description="prompt/response -> name in the source")


class ModelEntry(Entry):
    """One model: where it came from, and the hash of its weights."""

    source: str
    sha256: str = Field(description="hash over names, shapes, dtypes and bytes of all weights")
    parameters: int
    dtype: str


class Environment(Entry):
    """Machine and software that the numbers were measured with."""

    platform: str
    python: str
    processor: str
    cores: int
    memory_bytes: int
    accelerators: list[str] = Field(default_factory=list)
    packages: dict[str, str]


class Step(Entry):
    """One optimizer step. Quantities that the step did not compute are None (or absent)."""

    step: int
    learning_rate: float
    losses: dict[str, float] = Field(description="objective -> mean value, in the sign that is minimised")
    weights: dict[str, float] = Field(description="objective -> weight in the combined gradient")
    gradient_norms: dict[str, float] = Field(
        default_factory=dict, description="objective -> norm of its gradient"
    )
    cosines: dict[str, float] = Field(
        default_factory=dict, description="'a,b' -> cosine between the gradients of objectives a and b"
    )
    update_cosines: dict[str, float] = Field(
        default_factory=dict,
        description="objective -> cosine between its gradient and minus the applied change; > 0: it falls",
    )
    tokens: int = Field(description="real (unpadded) tokens processed by this step")
    seconds: float
    carried_cosine: float | None = Field(
        None,
        description="refresh_every: cosine of the direction under the last weights with that under new ones",
    )
    repair: bool = Field(False, description="a retain-only step, because the retain budget was exceeded")


class Probe(Entry):
    """One measurement of the retain loss by the step size rule or the retain budget (nats per token)."""

    step: int
    retain_loss: float
    standard_error: float = Field(
        description="over rows: of the paired change since the start (readings), of the loss itself (lines)"
    )
    slope: float | None = Field(None, description="a = (L(-1) - L(+1)) / 2, per step of eta")
    slope_error: float | None = Field(None, description="paired standard error of the slope")
    curvature: float | None = Field(None, description="b = L(+1) + L(-1) - 2 L(0)")
    learning_rate_before: float
    learning_rate_after: float
    decision: str = Field(description="what the rule did and why, e.g. 'newton', 'shrink: a <= 0', 'repair'")


class Check(Entry):
    """One look at whether the forget records are forgotten already."""

    step: int
    forget_nll: float = Field(
        description="mean NLL of forget responses; of a look at some rows what these say of all, less `lead`"
    )
    forget_leak: float = Field(
        description="share of forget responses that are reproduced exactly; once a look at all has named "
        "those that are, a look at some reads these besides, and takes all others for gone"
    )
    control: Literal["holdout", "synthetic", "swap"]
    control_nll: float = Field(
        description="NLL of the holdout, of swapped responses to the prompts, or the upper end of that of a "
        "synthetic holdout"
    )
    control_leak: float | None = None
    preference: float | None = Field(
        None, description="share of (record, swap) pairs whose true response is likelier"
    )
    earlier_nll: float | None = Field(None, description="NLL of records that earlier requests removed")
    earlier_leak: float | None = Field(None, description="share of these that are reproduced exactly")
    remaining: list[int] = Field(
        [],
        description="forget rows, from 0, that were reproduced, where the mean NLL has reached the control's "
        "and the leak has not; empty elsewhere, and until a look at all rows has named them",
    )
    rows: int | None = Field(None, description="forget rows looked at")
    of: int | None = Field(None, description="rows of the forget set")
    whole: bool | None = Field(
        None, description="whether these are all that can be compared; otherwise they speak for all"
    )
    lead: float | None = Field(
        None,
        description="how much nearer the goal than all rows those were that every look reads, when all were "
        "last looked at: in nats, beside swaps in preference. None before that",
    )
    met: bool

    @property
    def partial(self) -> bool:
        """Whether some rows were looked at, and speak for all."""
        return self.whole is False

    @property
    def ahead(self) -> float:
        """How far forget records are beyond their control, in nats; below 0 there is a way to go."""
        return self.forget_nll - self.control_nll


class Stop(Entry):
    """Why the run ended."""

    reason: Literal[
        "forgotten", "learned", "step-limit", "retain-budget", "diverged", "interrupted", "callback"
    ]
    sentence: str
    step: int
    restored_step: int | None = Field(
        None, description="the earlier step whose state was returned, if not the last"
    )


class Metric(Entry):
    """A value with its 95 % bootstrap interval over n records. Shares and probabilities are in [0, 1]."""

    value: float
    low: float
    high: float
    n: int


class Evaluation(Entry):
    """Metrics of one model: split -> metric -> value."""

    splits: dict[str, dict[str, Metric]]
    seconds: float
    scored_tokens: int
    generated_tokens: int


class Sample(Entry):
    """One record with what each model said about it."""

    split: str
    prompt: str
    response: str
    generations: dict[Stage, str] = Field(default_factory=dict)
    nll: dict[Stage, float] = Field(default_factory=dict)
    leaked: dict[Stage, bool] = Field(default_factory=dict)


class Predecessor(Entry):
    """The run that this one continues, and the model that all runs of the chain are accounted against."""

    folder: str
    record_sha256: str = Field(description="hash of the bytes of the predecessor's record.json")
    request: int = Field(ge=2, description="which request this run serves, counted from 1")
    first: ModelEntry = Field(description="the model before the first request")
    first_evaluation: Evaluation | None = Field(
        None, description="that model on what this run should keep, measured in this run"
    )


class RunRecord(Entry):
    """One run of a verb, whole."""

    schema_version: Literal[1] = SCHEMA_VERSION
    expunge_version: str
    kind: Literal["run", "finetune", "evaluate", "demo"]
    created: str = Field(description="ISO 8601, UTC")
    configuration: dict[str, Any]
    seed: int
    method: str | None = None
    code: dict[str, str] = Field(
        default_factory=dict,
        description="the user's own code in the method: name of a file (of a class or a function, in a "
        "script that is run itself or a notebook) -> SHA-256, or 'unknown'",
    )
    after: Predecessor | None = Field(None, description="the run that this one continues")
    data: dict[str, DataEntry] = Field(default_factory=dict)
    models: dict[str, ModelEntry] = Field(
        default_factory=dict,
        description="before, after, control; reinforced: one that a method asked besides",
    )
    files: dict[str, str] | None = Field(
        None,
        description="file of the saved model/, by its name there -> SHA-256 of its bytes; null: no model was "
        "saved, or the version that wrote this named no files",
    )
    environment: Environment
    history: list[Step] = Field(default_factory=list)
    probes: list[Probe] = Field(default_factory=list)
    checks: list[Check] = Field(default_factory=list)
    stop: Stop | None = None
    evaluations: dict[Stage, Evaluation] = Field(default_factory=dict)
    samples: list[Sample] = Field(default_factory=list)
    timings: dict[str, float] = Field(default_factory=dict, description="phase -> wall seconds")
    peak_memory_bytes: int = 0
    notes: list[str] = Field(default_factory=list, description="what a reader must know, e.g. duplicates")


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `record.json` into `folder` atomically: the file is whole or absent."""
    return write_atomically(folder / "record.json", record.model_dump_json(indent=1) + "\n")


def read_record(path: Path) -> RunRecord:
    """Read a `record.json`, or the one in a folder.

    Raises:
        UsageError: The file is missing, is not a record, or was written by a newer schema.
    """
    file = path / "record.json" if path.is_dir() else path
    return read_versioned(file, RunRecord, SCHEMA_VERSION, "a run record", "a finished run")


def read_versioned(file: Path, kind: type[Versioned], version: int, called: str, of: str) -> Versioned:
    """Read a typed record that carries its schema version.

    Args:
        file: JSON.
        kind: What it holds.
        version: The schema that this code knows.
        called: What an error calls it: "an audit".
        of: Whose --output folder an error asks for: "a finished run".

    Raises:
        UsageError: The file is missing, is not such a record, or has another schema.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("schema_version") != version:
            raise UsageError(
                f"{file} must have schema version {version}; it has {raw.get('schema_version')!r}. "
                "Read it with the version of expunge that wrote it."
            )
        return kind.model_validate(raw)
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist. Name the --output folder of {of}.") from None
    except ValidationError as error:
        raise UsageError(f"{file} is not {called}: {faults(error)}") from None
    except ValueError as error:
        raise UsageError(f"{file} is not {called}: {error}") from None


def faults(error: ValidationError) -> str:
    """Where a file breaks its schema and how, up to three places; never what stands there."""
    every = [
        f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
        for fault in error.errors(include_input=False, include_url=False, include_context=False)
    ]
    return "; ".join(every[:3]) + (f"; and {len(every) - 3} more" if len(every) > 3 else "")


def write_atomically(path: Path, text: str, *, private: bool = False) -> Path:
    """Write `text` to `path` through a temporary file in the same folder, which only its owner can read.

    Args:
        path: Of the file.
        text: All of it.
        private: Only its owner can read the file, too.

    Raises:
        UsageError: The disk is full, read-only, or fails; what stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with writing(path.name, path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            if not private:
                temporary.chmod(0o666 & ~_UMASK)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path
