"""The verbs as functions: each reads records, loads a model, acts, measures, and leaves a record.

The command line is a thin layer over these; anything it does can be done from Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge.arguments import UnlearningArguments
from expunge.benchmarks import BENCHMARKS, HARNESS
from expunge.benchmarks.benchmark import Benchmark
from expunge.benchmarks.harness import Harness
from expunge.callbacks import StopWhenLearned
from expunge.chain import Chain, read_chain
from expunge.continuation import account, pack
from expunge.errors import UsageError
from expunge.factories import nearest
from expunge.locks import exclusive
from expunge.material import missing
from expunge.methods import Method, fine_tune
from expunge.models import CausalModel, ModelSource, configured_context
from expunge.monitor import RunState
from expunge.record import RunRecord, Stage
from expunge.records import Record, Records, check_disjoint, read_records
from expunge.run_options import RunOptions, claim
from expunge.runs import Result, Run
from expunge.settings import arguments, configuration, own_code, resolve_method
from expunge.sources import REDACT
from expunge.training import conclude, ended, prepare, state_of, train, usable, written
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
        holdout: Records of the same kind that the model has never seen, as a control. Without them the run
            ends by synthetic ones (`synthetic_holdout`), and nothing is compared with records never seen.
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
    asked = settings
    recipe, settings = resolve_method(method, asked)
    args = arguments(settings, options, method if isinstance(method, str) else "")
    origin, chain = _origin(model, options)
    sets = read_sets({"forget": forget, "retain": retain, "holdout": holdout}, options)
    luggage = pack(sets, chain, options.neighbours)
    _check_sets(recipe, sets, args)
    inputs = [origin, options.control, options.original, options.neighbours, forget, retain, holdout]
    folder = claim(options, [*inputs, *recipe.second_models])
    own = sets | luggage.sets
    run = Run(options.kind, args, own, options, folder, benchmark=options.benchmark, chain=chain)
    run.companions, run.notes = luggage.companions, luggage.notes
    run.code = own_code(method, asked, recipe)
    loaded, tokenizer = run.load(origin, tokenizer, "before")
    if chain:
        chain.check_result(run.models["before"].sha256, given=model is not None)
    finished = ended(run, recipe, loaded)
    run.describe_seconds(recipe)
    run.derive(recipe, loaded, tokenizer)
    unlearner = prepare(run, loaded, tokenizer, recipe)
    _measure_start(run, unlearner, loaded, tokenizer)
    if finished:
        loaded, state = written(run, finished), state_of(finished)
    else:
        state = train(run, unlearner, f"Forgetting ({recipe.name})")
        loaded = unlearner.delivered()  # type: ignore[assignment]
    record = _keep(run, loaded, tokenizer, recipe, state, saved=bool(finished))
    return Result(loaded, tokenizer, record, folder)


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
    method = fine_tune()
    finished = ended(run, method, loaded)
    unlearner = prepare(run, loaded, tokenizer, method)
    unlearner.add_callback(StopWhenLearned(unlearner, options.target))
    run.accept()
    if options.evaluate:
        run.evaluate("before", loaded, tokenizer)
    if finished:
        loaded, state = written(run, finished), state_of(finished)
    else:
        state = train(run, unlearner, "Learning")
        loaded = unlearner.delivered()  # type: ignore[assignment]
    record = _keep(run, loaded, tokenizer, method, state, saved=bool(finished))
    return Result(loaded, tokenizer, record, folder)


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


def _check_sets(recipe: Method, sets: Mapping[str, Records], args: UnlearningArguments) -> None:
    """Refuse a method that reads what nobody gave and nothing can make."""
    for source in missing(recipe, sets, args):
        hint = ", let the model write some (--set self_retain=200)" if source == "retain" else ""
        raise UsageError(
            f"method {recipe.name} needs {source} records; none are given. "
            f"Give --{source} FILE{hint}, or choose a method that does not read them (grad-ascent)."
        )


def _measure_start(
    run: Run, unlearner: Unlearner, model: CausalModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Measure the first model of a chain; accept all input; measure the control, then the model as it is."""
    account(run, unlearner, tokenizer)
    options = run.options
    control = None
    if options.evaluate and options.control is not None:  # refused while an earlier run still stands
        control = run.load(options.control, tokenizer, "control")
    run.accept()
    if not options.evaluate:
        return
    if control is not None:  # first: metrics that compare with a reference take it
        run.evaluate("control", *control)
        control = None
    run.evaluate("before", model, tokenizer)


def _keep(
    run: Run,
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Method,
    state: RunState,
    *,
    saved: bool,
) -> RunRecord:
    """Save what a training left, unless that is done, and measure it, if it is worth it; write the record."""
    settled = configuration(run.args, recipe, run.norm) | run.asked
    if state.stop and state.stop.reason != "interrupted" and usable(run, state):
        step = state.stop.step if state.stop.restored_step is None else state.stop.restored_step
        run.describe("after", f"{recipe.name} at step {step}", model)
        if not saved:
            run.save(model, tokenizer)
        if run.options.evaluate:
            run.record(settled, recipe.name, state)  # what is known so far survives an interruption
            run.evaluate("after", model, tokenizer)
    return conclude(run, settled, recipe.name, state)


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
