"""One run of a verb: what was given, what it has measured so far, and the record it ends in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge import output, ranks
from expunge.adapters import check_trainable
from expunge.arguments import UnlearningArguments
from expunge.benchmarks.benchmark import Benchmark, Measured
from expunge.benchmarks.harness import Harness
from expunge.benchmarks.records import UserRecords
from expunge.benchmarks.samples import samples
from expunge.chain import Chain
from expunge.companions import joined
from expunge.derived import Derived
from expunge.environment import environment, installed, peak_memory
from expunge.errors import ResumeError, UsageError
from expunge.file_hashes import file_hashes
from expunge.four_bits import FOUR_BIT, keep_codes
from expunge.heap import give_back
from expunge.inference import model_context
from expunge.material import check_demands, complete, means_of
from expunge.methods import Method
from expunge.models import (
    CausalModel,
    ModelSource,
    configured_context,
    load_as,
    load_model,
    load_tokenizer,
    save_model,
)
from expunge.monitor import RunState
from expunge.progress import Advance
from expunge.record import (
    DataEntry,
    Evaluation,
    ModelEntry,
    RunRecord,
    Sample,
    Stage,
    read_record,
    write_record,
)
from expunge.records import Records
from expunge.redaction import REDACTED, redacted
from expunge.report import write_report
from expunge.run_options import Kind, RunOptions
from expunge.tables import Tables, examine, work
from expunge.weights import model_entry


@dataclass(frozen=True)
class Result:
    """What a verb leaves behind.

    Args:
        model: In memory, in fp32.
        tokenizer: Its tokenizer.
        record: Everything measured.
        folder: Where `model/`, `record.json` and `report.html` are; None when nothing was written.
    """

    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    record: RunRecord
    folder: Path | None

    @property
    def report(self) -> Path | None:
        """The page, if one was written."""
        return self.folder / "report.html" if self.folder else None


@dataclass
class Run:
    """The part that all verbs share: what was given, what was measured, how long it took.

    Args:
        kind: The verb.
        args: Settings.
        sets: Data set -> records.
        options: Options of the verb.
        folder: Output folder; None writes nothing.
        derived: Data sets made from the others for this run.
        models: Stage -> where the model came from, and its hash.
        files: File of the saved `model/` -> its hash; None while there is none.
        benchmark: What is measured; None: the user's own records, `sets`.
        tables: Stage -> what the model said.
        measured: Stage -> what the benchmark makes of it.
        timings: Phase -> wall seconds.
        notes: What a reader of the record must know.
        peak: Bytes that an earlier session of this run held at most.
        code: Hashes of the user's own code in the method (`settings.own_code`).
        norm: ‖θ‖₂ of the model before, where a setting is relative to it; else 1.
        chain: The runs that this one continues.
        companions: Sets whose rows accompany another's in training (see `expunge.companions`).
        first_evaluation: The model before the first of these runs, on what should be kept.
    """

    kind: Kind
    args: UnlearningArguments
    sets: dict[str, Records]
    options: RunOptions
    folder: Path | None = None
    models: dict[str, ModelEntry] = field(default_factory=dict)
    files: dict[str, str] | None = None
    benchmark: Benchmark | Harness | None = None
    tables: dict[Stage, Tables] = field(default_factory=dict)
    measured: dict[Stage, Measured] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    peak: int = 0
    code: dict[str, str] = field(default_factory=dict)
    norm: float = 1.0
    derived: dict[str, Records] = field(default_factory=dict)
    chain: Chain | None = None
    companions: dict[str, Records] = field(default_factory=dict)
    first_evaluation: Evaluation | None = None
    _fresh: list[Derived] = field(default_factory=list)
    _own: UserRecords | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of what happens inside to `timings[phase]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[phase] = self.timings.get(phase, 0.0) + time.perf_counter() - start

    def load(
        self, model: ModelSource, tokenizer: PreTrainedTokenizerBase | None, stage: str
    ) -> tuple[CausalModel, PreTrainedTokenizerBase]:
        """Tokenizer first, then everything that can be refused without the model, then the model."""
        with self.timed("load"):
            if not isinstance(model, str | Path):
                if tokenizer is None:
                    raise ValueError("`tokenizer` must be given with a model in memory; got None.")
                loaded: CausalModel = model  # type: ignore[assignment]
                keep_codes(loaded)
                self.subject.parts(tokenizer, model_context(model))
                source = self.options.source or loaded.config.name_or_path or type(model).__name__
            else:
                trust = self.options.trust_remote_code
                if isinstance(self.options.control, str | Path):
                    configured_context(self.options.control, trust_remote_code=trust)
                tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=trust)
                self.subject.parts(tokenizer, configured_context(model, trust_remote_code=trust))
                loaded = load_as(model, self._held(stage), device=self.args.device, trust_remote_code=trust)
                source = str(model)
            if not getattr(loaded, "is_loaded_in_4bit", False):  # that one stands where it was loaded
                loaded.to(self.args.device)  # type: ignore[arg-type]
            self.describe(stage, source, loaded)
            return loaded, tokenizer

    def _held(self, stage: str) -> str:
        """What a model's weights are to be held in; where a run is continued, what that one held them in."""
        if stage != "before":
            return "float32"
        if self.args.lora_4bit or self.args.lora_bf16:
            return FOUR_BIT[0] if self.args.lora_4bit else "bfloat16"
        return self.chain.result.dtype if self.chain else "float32"

    def derive(self, recipe: Method, model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the data sets that a method reads and nobody gave; a resumed run takes those it made before.

        They are kept beside the checkpoints once all input is accepted, so that both end together.

        Raises:
            UsageError: A data set could not be made, or what is to be trained is not there.
        """
        try:
            check_trainable(model, self.args)  # before the model writes answers, which may take long
            check_demands(recipe, model, self.args)
        except ValueError as error:
            raise UsageError(f"This run cannot start: {error}") from error
        wanted = [name for name in recipe.sources if name not in self.sets]
        store = self.folder / output.CHECKPOINTS / "derived" if self.folder else None
        args = self.args
        made = {n: Derived.read(store, n) if store and self.options.resume else None for n in wanted}
        known = {name: found for name, found in made.items() if found}
        means = means_of(model, tokenizer, args)
        with self.timed("derive"):
            given = joined(self.sets | self.companions) | {n: found.records for n, found in known.items()}
            fresh = complete(given, recipe, args, means)
        self._fresh = list(fresh.values())
        for name, found in (known | fresh).items():
            (self.sets if name == "retain" else self.derived)[name] = found.records
            self.notes += found.notes

    def accept(self) -> None:
        """All input has been accepted: an earlier run that is to be replaced may go."""
        if self.folder and self.options.overwrite and not self.options.claimed and ranks.first():
            output.clear(self.folder)
        if self.folder and ranks.first():
            for found in self._fresh:
                found.write(output.private(self.folder / output.CHECKPOINTS / "derived"))
        ranks.wait()
        self._fresh = []

    def unfinished(self) -> RunRecord | None:
        """With `resume`: the record of a run whose training ended but whose evaluation did not.

        Raises:
            ResumeError: The run in the output folder has ended.
        """
        if not (self.folder and self.options.resume and (self.folder / "record.json").is_file()):
            return None
        record = read_record(self.folder)
        if record.stop is None or record.stop.reason == "interrupted":
            return None
        if "before" in record.evaluations and "after" not in record.evaluations:
            whole = (self.folder / "model").is_dir()
            return record if whole else None  # killed while the model was replaced: the checkpoint has it
        if not (self.folder / "report.html").is_file():  # killed between the two
            write_report(record, self.folder)
        self.tidy()
        raise ResumeError(
            f"--resume must name an interrupted run; the one in {self.folder} has ended "
            f"({record.stop.reason}). Give --overwrite to run it again."
        )

    def describe(self, stage: str, source: str, model: CausalModel) -> None:
        """Note where a model came from and the hash of its weights."""
        self.models[stage] = model_entry(source, model)

    def describe_seconds(self, recipe: Method) -> None:
        """Note the models that a method asks beside the run's own, each loaded for its hash and let go.

        Raises:
            UsageError: One is not there, or is the run's own.
        """
        for i, place in enumerate(recipe.second_models):
            with self.timed("load"):
                other = load_model(place, trust_remote_code=self.options.trust_remote_code)
            name = "reinforced" if i == 0 else f"reinforced {i + 1}"
            self.describe(name, place, other)
            if self.models[name].sha256 == self.models["before"].sha256:
                raise UsageError(
                    f"A reinforced model must have been taught further; {place} has the weights of the model "
                    "itself. Teach it: expunge finetune --data FORGET --output FOLDER, perhaps with --set "
                    "target_loss=0.001, and name FOLDER/model."
                )

    def evaluate(self, stage: Stage, model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Have the model examined on all sets, and measure it beside the control, where that came first."""
        benchmark = self.subject
        parts = benchmark.parts(tokenizer, model_context(model))
        title, started = f"Evaluating ({stage})", time.perf_counter()
        with self.timed(f"evaluate {stage}"), self.options.reporter.phase(title, work(parts) or 1) as advance:
            if isinstance(benchmark, Harness):
                found = benchmark.ask(model, tokenizer, self.evaluation_seed)
                self.tables[stage] = Tables({}, time.perf_counter() - started, 0, 0)
            else:
                self.tables[stage] = examine(
                    model,
                    tokenizer,
                    parts,
                    precision=self.args.precision,
                    cache=self.options.cache,
                    progress=_Count(advance),
                )
                found = benchmark.measure(
                    self.tables[stage], self.tables.get("control"), self.evaluation_seed
                )
        give_back()
        self.measured[stage] = found
        self.notes += [note for note in found.notes if note not in self.notes]

    @property
    def evaluation_seed(self) -> int:
        """Seed of swaps and intervals."""
        own = self.options.evaluation_seed
        return self.args.seed if own is None else own

    @property
    def subject(self) -> Benchmark | Harness:
        """What is measured."""
        if self.benchmark is not None:
            return self.benchmark
        if self._own is None or list(self._own.sets) != list(self.sets):
            self._own = UserRecords(dict(self.sets), self.args.encoding, swap_seed=self.evaluation_seed)
        return self._own

    @property
    def asked(self) -> dict[str, Any]:
        """What the record says of options that are no settings: what measures a run, what ends a teaching."""
        benchmark = {} if self.benchmark is None else {"benchmark": self.benchmark.name}
        return benchmark | ({"target_loss": self.options.target} if self.options.kind == "finetune" else {})

    def _own_seed(self) -> dict[str, int]:
        seed = self.options.evaluation_seed
        return {} if seed is None else {"evaluation_seed": seed}

    def save(self, model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the model into the output folder, if there is one, and note the hash of every file."""
        if self.folder:
            place = self.folder / "model"
            with self.timed("save"):
                if ranks.first():
                    save_model(model, tokenizer, place)
                ranks.wait()
                self.files = ranks.decided(lambda: file_hashes(place))

    def tidy(self) -> None:
        """Remove checkpoints and leftovers: the run has ended well, and its record is written."""
        if self.folder and ranks.first():
            output.tidy(self.folder)

    def record(
        self, configuration: Mapping[str, Any], method: str | None = None, state: RunState | None = None
    ) -> RunRecord:
        """Everything known, as a record; written with its page when there is an output folder.

        Args:
            configuration: Settings that decide the result, as plain values.
            method: Name of the method, if one was used.
            state: What the training measured and decided.
        """
        record = RunRecord(
            expunge_version=installed("expunge") or "0",
            kind=self.kind,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            configuration=dict(configuration) | self._own_seed(),
            seed=self.args.seed,
            method=method,
            code=self.code,
            after=self.chain.entry(self.first_evaluation) if self.chain else None,
            data=data_entries(self._data(), self.benchmark),
            models=self.models,
            files=self.files,
            environment=environment(),
            history=state.steps if state else [],
            probes=state.probes if state else [],
            checks=state.checks if state else [],
            stop=state.stop if state else None,
            evaluations={stage: self._evaluation(stage) for stage in self.measured},
            samples=self._samples(),
            timings={phase: round(seconds, 3) for phase, seconds in self.timings.items()},
            peak_memory_bytes=max(peak_memory(), self.peak),
            notes=self._told(),
        )
        if self.folder and ranks.first():
            write_record(record, self.folder)
            write_report(record, self.folder)
        return record

    def _told(self) -> list[str]:
        """All notes, each once: an earlier session may have said the same."""
        redaction = [REDACTED] if self.options.redact else []
        notes = [*self.options.notes, *self.notes, *redaction, *_duplicate_notes(self.sets)]
        return list(dict.fromkeys(notes))

    def _samples(self) -> list[Sample]:
        shown = samples(self.measured)
        return redacted(shown) if self.options.redact else shown

    def _data(self) -> dict[str, Records]:
        """All sets; what earlier requests removed stands there request by request already."""
        more = {name: records for name, records in self.companions.items() if name != "forgotten"}
        return self.sets | self.derived | more

    def _evaluation(self, stage: Stage) -> Evaluation:
        tables = self.tables[stage]
        return Evaluation(
            splits={split: dict(found) for split, found in self.measured[stage].splits.items()},
            seconds=tables.seconds,
            scored_tokens=tables.scored_tokens,
            generated_tokens=tables.generated_tokens,
        )


class _Count:
    """Turns rows finished since the last call into rows finished in all."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        self.advance(self.done, "")


def data_entry(records: Records) -> DataEntry:
    """A data set as records name it."""
    return DataEntry(
        source=records.source,
        sha256=records.sha256,
        rows=len(records),
        duplicates=records.duplicates,
        fields=dict(records.fields),
    )


def data_entries(
    sets: Mapping[str, Records], benchmark: Benchmark | Harness | None = None
) -> dict[str, DataEntry]:
    """All that was read: the sets, and under "NAME/SET" those of a benchmark that are not among them."""
    read = dict(sets)
    if benchmark is not None:
        asked = {name: records for name, records in benchmark.sets.items() if sets.get(name) is not records}
        read |= {f"{benchmark.name}/{name}": records for name, records in asked.items()}
    return {name: data_entry(records) for name, records in read.items()}


def _duplicate_notes(sets: Mapping[str, Records]) -> list[str]:
    return [
        f"{records.duplicates} of {len(records)} {name} rows repeat an earlier row."
        for name, records in sets.items()
        if records.duplicates
    ]
