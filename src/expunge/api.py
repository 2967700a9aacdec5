"""The verbs as functions: each reads records, loads a model, acts, measures, and leaves a record.

The command line is a thin layer over these; anything it does can be done from Python.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

from expunge import output
from expunge.arguments import UnlearningArguments
from expunge.errors import UsageError
from expunge.methods import METHODS, Method, fine_tune
from expunge.record import Stage, Stop
from expunge.records import Record, Records, check_disjoint, read_records
from expunge.runs import ModelSource, Result, Run, RunOptions, claim
from expunge.unlearner import Unlearner

PASSES = 15
"""Passes over the data that `finetune` takes at most, unless `max_steps` is given."""

Data = str | Path | Records | Iterable[Record | Mapping[str, Any]]


def unlearn(
    model: ModelSource,
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
        model: A local folder, a Hub id, `smollm2-135m`, or a model in memory (trained in place).
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
    recipe, settings = resolve_method(method, settings)
    given = {"forget": forget, "retain": retain, "holdout": holdout}
    sets = {name: _read(data, name, options) for name, data in given.items() if data is not None}
    _check_sets(recipe, sets)
    return _unlearn(model, tokenizer, recipe, sets, options, settings)


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
    options, settings = RunOptions.take(settings)
    records = _read_all(data, options)
    rows = settings.get("per_device_train_batch_size", 8) * settings.get("gradient_accumulation_steps", 1)
    lesson = {
        "learning_rate": 3e-4,
        "lr_scheduler_type": "linear",
        "max_steps": PASSES * -(-len(records) // rows),
    }
    args = _arguments(lesson | settings, options)
    run = Run("finetune", args, {"retain": records}, claim(options), options.reporter)
    model, tokenizer = run.load(model, tokenizer, "before")
    unlearner = Unlearner(model, args, fine_tune(), tokenizer, retain_dataset=run.sets["retain"])
    unlearner.add_callback(_StopWhenLearned(unlearner, options.target_loss))
    if _train(run, unlearner, "Learning", options).reason != "interrupted":
        run.describe("after", "fine-tuned", model)
        run.save(model, tokenizer)
        if options.evaluate:
            run.evaluate("after", model, tokenizer)
        run.tidy()
    return Result(model, tokenizer, run.record(_configuration(unlearner), unlearner), run.folder)


def evaluate(
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    control: ModelSource | None = None,
    original: ModelSource | None = None,
    **settings: Any,
) -> Result:
    """Measure a model on the user's own forget, retain and holdout records.

    Args:
        model: As for `unlearn`; reported as `after` when `original` is given, else as `before`.
        tokenizer: Needed with a model in memory.
        control: A model that never saw the forget records.
        original: The model before unlearning.
        **settings: `forget`, `retain`, `holdout` (at least one); fields of `UnlearningArguments` and of
            `RunOptions`.

    Raises:
        UsageError: Data, model or settings cannot be used.
    """
    options, settings = RunOptions.take(settings)
    given = {name: settings.pop(name, None) for name in ("forget", "retain", "holdout")}
    sets = {name: _read(data, name, options) for name, data in given.items() if data is not None}
    if not sets:
        raise UsageError(
            "evaluate needs records; none of --forget, --retain, --holdout is given. Give at least one."
        )
    run = Run("evaluate", _arguments(settings, options), sets, claim(options), options.reporter)
    stages: dict[Stage, ModelSource | None] = {"before": original, "control": control}
    for stage, source in stages.items():
        if source is not None:
            run.evaluate(stage, *run.load(source, tokenizer, stage))
    last: Stage = "after" if original is not None else "before"
    model, tokenizer = run.load(model, tokenizer, last)
    run.evaluate(last, model, tokenizer)
    return Result(model, tokenizer, run.record({"precision": run.args.precision}), run.folder)


def resolve_method(method: str | Method, settings: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """A recipe by name with its arguments taken from `settings`, and the settings left over.

    Raises:
        UsageError: No recipe has that name, or it refuses an argument.
    """
    if isinstance(method, Method):
        return method, dict(settings)
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"--method must be one of {', '.join(METHODS)}; got {method!r}. {hint}See expunge list methods."
        )
    parameters = inspect.signature(METHODS[method]).parameters
    mine = {key: value for key, value in settings.items() if key in parameters}
    try:
        recipe = METHODS[method](**mine)
    except (TypeError, ValueError) as error:
        raise UsageError(f"method {method} refused its settings: {error}") from None
    return recipe, {key: value for key, value in settings.items() if key not in parameters}


def _unlearn(
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: Method,
    sets: dict[str, Records],
    options: RunOptions,
    settings: Mapping[str, Any],
) -> Result:
    args = _arguments(settings, options)
    run = Run(options.kind, args, sets, claim(options), options.reporter, notes=list(options.notes))
    model, tokenizer = run.load(model, tokenizer, "before")
    if options.evaluate:
        run.evaluate("before", model, tokenizer)
    unlearner = Unlearner(
        model, args, recipe, tokenizer, sets.get("forget"), sets.get("retain"), sets.get("holdout")
    )
    stop = _train(run, unlearner, f"Forgetting ({recipe.name})", options)
    if stop.reason != "interrupted":
        run.describe("after", f"{recipe.name} at step {stop.restored_step or stop.step}", model)
        run.save(model, tokenizer)
        if options.evaluate:
            run.evaluate("after", model, tokenizer)
            if options.control is not None:
                run.evaluate("control", *run.load(options.control, tokenizer, "control"))
        run.tidy()
    return Result(model, tokenizer, run.record(_configuration(unlearner), unlearner), run.folder)


def _train(run: Run, unlearner: Unlearner, title: str, options: RunOptions) -> Stop:
    checkpoint = output.last_checkpoint(run.folder) if run.folder and options.resume else None
    if options.resume and checkpoint is None:
        run.notes.append("--resume found no checkpoint; the run started from the beginning.")
    with run.timed("train"), run.reporter.phase(title, run.args.max_steps) as advance:
        unlearner.add_callback(_Ticker(unlearner, advance))
        try:
            unlearner.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except ValueError as error:
            if checkpoint is None:
                raise
            raise UsageError(f"--resume cannot continue this run: {error}") from error
    assert unlearner.stop is not None
    unlearner.release()
    return unlearner.stop


class _Ticker(TrainerCallback):
    """Moves the progress bar."""

    def __init__(self, unlearner: Unlearner, advance: Any) -> None:
        self.unlearner, self.advance = unlearner, advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = self.unlearner.history[-1]
        words = "  ".join(f"{name} {value:.2f}" for name, value in last.losses.items())
        self.advance(state.global_step, words + ("  repair" if last.repair else ""))


class _StopWhenLearned(TrainerCallback):
    """Ends fine-tuning once the mean loss of one pass over the data is below a target."""

    def __init__(self, unlearner: Unlearner, target: float) -> None:
        self.unlearner, self.target = unlearner, target
        rows = len(unlearner.records["retain"])
        self.steps = -(
            -rows // (unlearner.args.train_batch_size * unlearner.args.gradient_accumulation_steps)
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = [next(iter(step.losses.values())) for step in self.unlearner.history[-self.steps :]]
        if len(last) == self.steps and sum(last) / len(last) < self.target:
            sentence = f"The mean loss of one pass over the data fell below {self.target:g}."
            self.unlearner.monitor.state.stop = Stop(
                reason="learned", sentence=sentence, step=state.global_step
            )
            control.should_training_stop = True


def _arguments(settings: Mapping[str, Any], options: RunOptions) -> UnlearningArguments:
    known = {f.name for f in dataclasses.fields(UnlearningArguments) if f.init}
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"Did you mean {near[0]}?"
                if near
                else "See the arguments of UnlearningArguments and of the method."
            )
            raise UsageError(f"--set must name a setting; {key!r} is none. {hint}")
    folder = (
        Path(options.output) / output.CHECKPOINTS
        if options.output
        else Path(tempfile.gettempdir()) / "expunge"
    )
    defaults: dict[str, Any] = {"output_dir": str(folder)}
    if options.output is None:
        defaults["save_strategy"] = "no"
    try:
        return UnlearningArguments(**defaults | dict(settings))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set was refused: {error}") from None


def _configuration(unlearner: Unlearner) -> dict[str, Any]:
    """Settings that decide the result, as plain values."""
    args, method = unlearner.args, unlearner.method
    names = (
        "learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "per_device_train_batch_size",
        "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm", "template", "max_length",
        "check_every", "check_rows",
    )  # fmt: skip
    values = {name: getattr(args, name) for name in names}
    plain = {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in values.items()}
    return plain | {
        "precision": args.precision,
        "objectives": [objective.name for objective in method.objectives],
        "weighting": repr(method.weighting),
        "step_size": repr(method.step_size) if method.step_size else "schedule",
        "retain_budget": dataclasses.asdict(method.budget) if method.budget else None,
    }


def _read(data: Data, name: str, options: RunOptions) -> Records:
    if isinstance(data, Records):
        return data
    return read_records(
        data, name=name, prompt_field=options.prompt_field, response_field=options.response_field
    )


def _read_all(data: Data | Sequence[Data], options: RunOptions) -> Records:
    """Several sources read as one set; a list of records is one source."""
    several = (
        isinstance(data, list | tuple) and data and all(isinstance(d, str | Path | Records) for d in data)
    )
    parts = [_read(d, "retain", options) for d in (data if several else [data])]  # type: ignore[union-attr,arg-type]
    if len(parts) == 1:
        return parts[0]
    merged = read_records([row for part in parts for row in part], name="retain")
    return dataclasses.replace(merged, source=" + ".join(part.source for part in parts))


def _check_sets(method: Method, sets: Mapping[str, Records]) -> None:
    for source in method.sources:
        if source not in sets:
            raise UsageError(
                f"method {method.name} needs {source} records; none are given. "
                f"Give --{source} FILE, or choose a method that does not read them (grad-ascent)."
            )
    for other in ("retain", "holdout"):
        if other in sets:
            check_disjoint(sets["forget"], sets[other])
