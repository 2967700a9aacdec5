"""The verbs as functions: each reads records, loads a model, acts, measures, and leaves a record.

The command line is a thin layer over these; anything it does can be done from Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from expunge import output, ranks
from expunge.benchmarks import BENCHMARKS, HARNESS
from expunge.benchmarks.benchmark import Benchmark
from expunge.benchmarks.harness import Harness
from expunge.callbacks import StopWhenLearned, Ticker
from expunge.chain import Chain, read_chain
from expunge.continuation import account, pack
from expunge.derived import is_forget
from expunge.errors import UsageError
from expunge.file_hashes import differences
from expunge.heap import give_back
from expunge.locks import exclusive
from expunge.material import missing
from expunge.methods import Method, fine_tune
from expunge.models import CausalModel, configured_context, load_model, weights_hash
from expunge.monitor import RunState
from expunge.record import RunRecord, Stage
from expunge.records import Record, Records, check_disjoint, read_records
from expunge.runs import ModelSource, Result, Run, RunOptions, claim, data_entries
from expunge.settings import arguments, configuration, nearest, resolve_method
from expunge.sources import REDACT
from expunge.unlearner import Unlearner

PASSES = 15
"""Passes over the data that `finetune` takes at most, unless `max_steps` is given."""

Data = str | Path | Records | Iterable[Record | Mapping[str, Any]]


@exclusive
def unlearn(
    model: ModelSource | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    forget: Data,
    retain: Data | None = None,
    holdout: Data | None = None,
    method: str | Method = "ngdiff",
    **settings: Any,
) -> Result:
    """Remove the forget records from a model, keep the rest, and measure both.

    Args:
        model: A local folder, a Hub id, `smollm2-135m`, or a model in memory (trained in place). With `after`
            it is the result of that run, and need not be given.
        tokenizer: Needed with a model in memory.
        forget: Records to remove: a path, a Hub id, or a list of `{"prompt": …, "response": …}`.
        retain: Records to keep.
        holdout: Records of the same kind that the model has never seen, as a control.
        method: A name from `expunge list methods`, or a `Method`.
        **settings: Fields of `UnlearningArguments`, arguments of the recipe, and of `RunOptions`.

    Returns:
        The model, and the record of the run. Ctrl-C returns too, with stop reason `interrupted`.

    Raises:
        UsageError: Data, model or settings cannot be used; the message says why and what to do.

    Example:
        >>> result = unlearn("smollm2-135m", forget="forget.jsonl", retain="retain.jsonl")  # doctest: +SKIP
        >>> result.record.evaluations["after"].splits["forget"]["leak"].value  # doctest: +SKIP
        0.02
    """
    options, settings = RunOptions.take(settings)
    REDACT.set(options.redact)
    name = method if isinstance(method, str) else ""
    recipe, settings = resolve_method(method, settings)
    args = arguments(settings, options, name)
    origin, chain = _origin(model, options)
    sets = read_sets({"forget": forget, "retain": retain, "holdout": holdout}, options)
    luggage = pack(sets, chain, options.neighbours)
    for source in missing(recipe, sets, args):
        hint = ", let the model write some (--set self_retain=200)" if source == "retain" else ""
        raise UsageError(
            f"method {recipe.name} needs {source} records; none are given. "
            f"Give --{source} FILE{hint}, or choose a method that does not read them (grad-ascent)."
        )
    inputs = [origin, options.control, options.original, options.neighbours, forget, retain, holdout]
    folder = claim(options, inputs)
    own = sets | luggage.sets
    run = Run(options.kind, args, own, options, folder, benchmark=options.benchmark, chain=chain)
    run.companions, run.notes = luggage.companions, luggage.notes
    loaded, tokenizer = run.load(origin, tokenizer, "before")
    if chain:
        chain.check_result(run.models["before"].sha256, given=model is not None)
    finished = run.unfinished()
    if finished:
        _check_same(finished, run, recipe.name)
    run.derive(recipe, loaded, tokenizer)
    unlearner = _prepare(run, loaded, tokenizer, recipe)
    account(run, unlearner, tokenizer)
    control = None
    if options.evaluate and options.control is not None:  # refused while an earlier run still stands
        control = run.load(options.control, tokenizer, "control")
    run.accept()
    if options.evaluate:
        if control is not None:  # first: metrics that compare with a reference take it
            run.evaluate("control", *control)
            control = None
        run.evaluate("before", loaded, tokenizer)
    if finished:
        loaded, state = _written(run, finished), _state(finished)
    else:
        state = _train(run, unlearner, f"Forgetting ({recipe.name})")
        loaded = unlearner.delivered()  # type: ignore[assignment]
    settled = configuration(args, recipe) | run.asked
    if state.stop and state.stop.reason != "interrupted" and _usable(run, state):
        step = state.stop.step if state.stop.restored_step is None else state.stop.restored_step
        run.describe("after", f"{recipe.name} at step {step}", loaded)
        if not finished:
            run.save(loaded, tokenizer)
        if options.evaluate:
            run.record(settled, recipe.name, state)  # what is known so far survives an interruption
            run.evaluate("after", loaded, tokenizer)
    return Result(loaded, tokenizer, _last(run, settled, recipe.name, state), folder)


@exclusive
def finetune(
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    data: Data | Sequence[Data],
    **settings: Any,
) -> Result:
    """Teach a model records, until it knows them or the step limit is reached.

    η falls linearly from 3e-4 to 0 over the step limit, 15 passes over the data by default.

    Args:
        model: As for `unlearn`.
        tokenizer: Needed with a model in memory.
        data: Records to learn; several paths are read as one set.
        **settings: Fields of `UnlearningArguments`, and of `RunOptions`.

    Raises:
        UsageError: Data, model or settings cannot be used.
    """
    options, settings = RunOptions.take({"kind": "finetune"} | settings)
    args = arguments({"learning_rate": 3e-4, "lr_scheduler_type": "linear"} | settings, options)
    records, sources = _read_all(data, options)
    if "max_steps" not in settings:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        args.max_steps = PASSES * -(-len(records) // rows)
    folder = claim(options, [model, *sources])
    run = Run(options.kind, args, {"train": records}, options, folder)
    loaded, tokenizer = run.load(model, tokenizer, "before")
    run.unfinished()
    method = fine_tune()
    unlearner = _prepare(run, loaded, tokenizer, method)
    unlearner.add_callback(StopWhenLearned(unlearner, options.target_loss))
    run.accept()
    if options.evaluate:
        run.evaluate("before", loaded, tokenizer)
    state = _train(run, unlearner, "Learning")
    loaded = unlearner.delivered()  # type: ignore[assignment]
    if state.stop and state.stop.reason != "interrupted" and _usable(run, state):
        run.describe("after", "fine-tuned", loaded)
        run.save(loaded, tokenizer)
        if options.evaluate:
            run.evaluate("after", loaded, tokenizer)
    return Result(loaded, tokenizer, _last(run, configuration(args, method), method.name, state), folder)


@exclusive
def evaluate(
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None = None,
    benchmark: str | Benchmark | Harness = "records",
    *,
    data: str | Path | None = None,
    reference: ModelSource | None = None,
    original: ModelSource | None = None,
    **settings: Any,
) -> Result:
    """Measure a model on a benchmark, or on the user's own forget, retain and holdout records.

    Args:
        model: As for `unlearn`; reported as `after` when `original` is given, else as `before`.
        tokenizer: Needed with a model in memory.
        benchmark: A name from `expunge list benchmarks`, or a `Benchmark`.
        data: Where a named benchmark's files are.
        reference: A model that never saw the forget records, reported as `control`. It is measured first, and
            metrics that compare with a reference take it.
        original: The model before unlearning.
        **settings: `forget`, `retain`, `holdout` for "records" (at least one); `options`, a mapping that a
            named benchmark's `load` takes; fields of `UnlearningArguments` and of `RunOptions`.

    Raises:
        UsageError: Data, model or settings cannot be used.
    """
    options, settings = RunOptions.take({"kind": "evaluate"} | settings)
    REDACT.set(options.redact)
    given = {name: settings.pop(name, None) for name in ("forget", "retain", "holdout")}
    chosen = named_benchmark(
        benchmark, data, settings.pop("options", {}), any(d is not None for d in given.values())
    )
    args = arguments(settings, options)
    sets = dict(chosen.sets) if chosen else read_sets(given, options)
    if not (sets or chosen):
        raise UsageError(
            "evaluate needs records; none of --forget, --retain, --holdout is given. Give at least one."
        )
    folder = claim(options, [model, reference, original, data, *given.values()])
    run = Run("evaluate", args, sets, options, folder, benchmark=chosen)
    last: Stage = "after" if original is not None else "before"
    stages: dict[Stage, ModelSource | None] = {"control": reference, "before": original, last: model}
    for source in stages.values():
        if isinstance(source, str | Path):  # refused while an earlier run still stands
            configured_context(source, trust_remote_code=options.trust_remote_code)
    loaded = None
    for stage, source in stages.items():
        if source is not None:
            loaded = run.load(source, tokenizer, stage)
            if len(run.models) == 1:
                run.accept()
            run.evaluate(stage, *loaded)
    assert loaded is not None
    settled: dict[str, Any] = {"precision": args.precision}
    if chosen:
        settled |= {"benchmark": chosen.name, "data": str(data) if data else None}
    else:
        settled |= {"template": args.template, "max_length": args.max_length}
    return Result(*loaded, run.record(settled), run.folder)


def named_benchmark(
    benchmark: str | Benchmark | Harness,
    data: str | Path | None,
    options: Mapping[str, Any],
    has_sets: bool,
) -> Benchmark | Harness | None:
    """What to measure; None: the sets that are given.

    Args:
        benchmark: A name from `expunge list benchmarks`, or one in memory.
        data: Where a named benchmark's files are.
        options: For its `load`.
        has_sets: Whether the user gave sets of their own.

    Raises:
        UsageError: There is no such benchmark, it needs files, or it refuses them or an option.
    """
    if not isinstance(benchmark, str):
        return benchmark
    if benchmark == "records":
        if data is not None or options:
            raise UsageError("--data and --option belong to a named benchmark; records takes --forget FILE.")
        return None
    known = list(dict.fromkeys(("records", *BENCHMARKS, *HARNESS)))
    if benchmark not in known:
        raise UsageError(
            f"BENCHMARK must be one of {', '.join(known)}; got {benchmark!r}. {nearest(benchmark, known)}"
        )
    if has_sets:
        raise UsageError(
            f"--forget, --retain and --holdout belong to records; {benchmark} brings its own sets."
        )
    if benchmark in HARNESS and (data is None or benchmark not in BENCHMARKS):
        return _harness(benchmark, data, options)
    if data is None:
        raise UsageError(f"{benchmark} needs its files. Give --data DIR.")
    return BENCHMARKS[benchmark](Path(data), **options)


def _harness(benchmark: str, data: str | Path | None, options: Mapping[str, Any]) -> Harness:
    if data is not None:
        raise UsageError(
            f"{benchmark} takes no --data: the LM Evaluation Harness reads its own. Leave it out."
        )
    try:
        return Harness(benchmark, **options)
    except TypeError:
        names = ", ".join(f.name for f in dataclasses.fields(Harness)[1:])
        raise UsageError(
            f"--option must be one of {names} for {benchmark} through the LM Evaluation Harness; "
            f"got {', '.join(options)}."
        ) from None


def _origin(model: ModelSource | None, options: RunOptions) -> tuple[ModelSource, Chain | None]:
    """The model to begin with, and the runs that led to it."""
    if options.after is None:
        if options.forgotten or options.original is not None:
            raise UsageError("--forgotten and --original belong to --after. Give it, or leave them out.")
        if model is None:
            raise UsageError("unlearn needs a model. Give --model, or --after to continue an earlier run.")
        return model, None
    chain = read_chain(Path(options.after), options.forgotten)
    return chain.folder / "model" if model is None else model, chain


def _prepare(run: Run, model: Any, tokenizer: PreTrainedTokenizerBase, recipe: Method) -> Unlearner:
    """The engine, and with `resume` the proof that the checkpoint is of this run."""
    sets = run.sets
    retain = sets.get("retain", sets.get("train"))
    try:
        unlearner = Unlearner(
            model,
            run.args,
            recipe,
            tokenizer,
            sets.get("forget"),
            retain,
            sets.get("holdout"),
            derived_datasets=run.derived | run.companions,
        )
    except ValueError as error:
        raise UsageError(f"This run cannot start: {error}") from error
    unlearner.monitor.state.fingerprint += run.models["before"].sha256[:16]
    unlearner.monitor.state.fingerprint += run.chain.record_sha256[:16] if run.chain else ""
    if (checkpoint := _checkpoint(run)) is not None:
        try:
            unlearner.monitor.load(checkpoint)
        except ValueError as error:
            raise UsageError(f"--resume cannot continue this run: {error}") from None
    if any(map(is_forget, recipe.sources)) and unlearner.monitor.check is None:
        run.notes.append("There was no control to compare the forget records with: only limits end this run.")
    return unlearner


def _checkpoint(run: Run) -> Path | None:
    return output.last_checkpoint(run.folder) if run.folder and run.options.resume else None


def _train(run: Run, unlearner: Unlearner, title: str) -> RunState:
    checkpoint = _checkpoint(run)
    if run.options.resume and checkpoint is None:
        run.notes.append("--resume found no checkpoint; the run started from the beginning.")
    if checkpoint is not None:
        run.notes.append("Resumed from a checkpoint; times are those of the last session.")
    with run.timed("train"), run.options.reporter.phase(title, run.args.max_steps) as advance:
        unlearner.add_callback(Ticker(unlearner, advance))
        unlearner.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if ranks.sharded(unlearner.trained):
        run.notes.append(f"The model was sharded over {unlearner.accelerator.num_processes} processes.")
    unlearner.release()
    give_back()
    return unlearner.monitor.state


def _last(run: Run, settled: Mapping[str, Any], method: str, state: RunState) -> RunRecord:
    """The record of the run as it ended; only once it is written may the checkpoints go."""
    record = run.record(settled, method, state)
    if "after" in run.models:
        run.tidy()
    return record


def _check_same(record: RunRecord, run: Run, method: str) -> None:
    """The evaluation that is left is continued only with the model, data, method and seed of the training."""
    now = {name: entry.sha256 for name, entry in data_entries(run.sets, run.benchmark).items()}
    known = {name: entry.sha256 for name, entry in record.data.items()}
    same = all(known.get(name) == sha for name, sha in now.items())
    same = same and (record.method, record.seed) == (method, run.args.seed)
    if not same or record.models["before"].sha256 != run.models["before"].sha256:
        raise UsageError(
            f"--resume must continue with the same model, data, method and seed; those of {run.folder} "
            "differ. Give the same, or --overwrite to run again."
        )


def _usable(run: Run, state: RunState) -> bool:
    """Whether the weights are worth keeping: a diverged run without a last good state leaves none."""
    if state.stop is None or state.stop.reason != "diverged" or state.stop.restored_step is not None:
        return True
    run.notes.append("The run diverged and the method keeps no earlier state: no model was saved.")
    return False


def _state(record: RunRecord) -> RunState:
    """What an ended training measured, from its record."""
    return RunState(
        fingerprint="", steps=record.history, probes=record.probes, checks=record.checks, stop=record.stop
    )


def _written(run: Run, record: RunRecord) -> CausalModel:
    """The model that an ended training left in the output folder.

    Raises:
        UsageError: It is not the one that the record tells of.
    """
    assert run.folder is not None
    place, run.files = run.folder / "model", record.files
    another = UsageError(
        f"--resume must find the model that {run.folder / 'record.json'} tells of; {place} is another. "
        "Give --overwrite to run again."
    )
    if record.files is not None and any(differences(place, record.files)):
        raise another
    dtype = getattr(torch, record.models["after"].dtype, torch.float32)
    model = load_model(place, dtype=dtype, trust_remote_code=run.options.trust_remote_code)
    model.to(run.args.device)  # type: ignore[arg-type]
    if weights_hash(model) != record.models["after"].sha256:
        raise another
    return model


def _read(data: Data, name: str, options: RunOptions) -> Records:
    if isinstance(data, Records):
        return data
    return read_records(
        data, name=name, prompt_field=options.prompt_field, response_field=options.response_field
    )


def read_sets(given: Mapping[str, Data | None], options: RunOptions) -> dict[str, Records]:
    """Read what is given; no set may share a record with another."""
    REDACT.set(options.redact)
    sets = {name: _read(data, name, options) for name, data in given.items() if data is not None}
    for first, second in (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout")):
        if first in sets and second in sets:
            check_disjoint(sets[first], sets[second])
    return sets


def _read_all(data: Data | Sequence[Data], options: RunOptions) -> tuple[Records, list[Data]]:
    """Several sources read as one set, with the hash of each; a list of records is one source."""
    several = (
        isinstance(data, list | tuple) and data and all(isinstance(d, str | Path | Records) for d in data)
    )
    sources: list[Any] = list(data) if several else [data]  # type: ignore[arg-type]
    REDACT.set(options.redact)
    parts = [_read(source, "train", options) for source in sources]
    if len(parts) == 1:
        return parts[0], sources
    merged = read_records([row for part in parts for row in part], name="train")
    source, sha256 = " + ".join(p.source for p in parts), " + ".join(p.sha256 for p in parts)
    return dataclasses.replace(merged, source=source, sha256=sha256), sources
