"""What a comparison is about: which records every trial gets, and which two numbers weigh it.

The one place where a comparison knows benchmarks by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge import api
from expunge.benchmarks import lume, tofu
from expunge.benchmarks import records as records_benchmark
from expunge.benchmarks.benchmark import Benchmark
from expunge.benchmarks.harness import Harness
from expunge.comparison_record import Axis, Better
from expunge.errors import UsageError
from expunge.factories import nearest
from expunge.progress import Reporter, Silent
from expunge.records import Records
from expunge.run_options import RunOptions, VerbOptions

OTHER_WAY = {"nll", "truth_ratio", "forget_quality", "membership_score"}
"""Metrics that rise when a record is forgotten; `forget_quality` is wanted high on the forget side, too."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {"lume": {"template": "none"}}
"""Benchmark -> settings of every trial that follow from how it asks, unless others are given."""


@dataclass(frozen=True)
class CompareOptions(VerbOptions):
    """Options of a comparison that are not settings of its trials.

    Args:
        benchmark: `records`, the user's own forget, retain and holdout; `tofu`; `lume`.
        data: Folder of a named benchmark: every trial trains on its sets and is measured by its metrics.
        options: Options of a named benchmark, as its `load` takes them.
        reference: A model that never saw the forget records; measured with every trial.
        forget: Records to remove.
        retain: Records to keep.
        holdout: Records of the same kind that the model has never seen.
        forget_metric: `SPLIT/METRIC` that measures forgetting; `:higher` or `:lower` behind it says which is
            better where that is not the usual way. None is the benchmark's own.
        utility_metric: The same for what is to be kept.
        keep_models: Keep every trial's model.
        evaluation_seed: Of every trial's evaluation; None is the first of the seeds.
        resume: Continue the comparison in the output folder, or add to it.
        overwrite: Replace it.
        trust_remote_code: Let a model run code of its own.
        prompt_field: Name of the prompt in the data.
        response_field: Name of the response in the data.
        redact: Records, pages and errors of the trials hold no text of any record.
        reporter: Is told of every phase.
    """

    benchmark: str = "records"
    data: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str | Path | None = None
    forget: api.Data | None = None
    retain: api.Data | None = None
    holdout: api.Data | None = None
    forget_metric: str | None = None
    utility_metric: str | None = None
    keep_models: bool = False
    evaluation_seed: int | None = None
    resume: bool = False
    overwrite: bool = False
    trust_remote_code: bool = False
    prompt_field: str | None = None
    response_field: str | None = None
    redact: bool = False
    reporter: Reporter = field(default_factory=Silent)


@dataclass(frozen=True)
class Subject:
    """What every trial is given, whatever the benchmark.

    Attributes:
        sets: forget, retain, holdout, as `unlearn` takes them.
        axes: Names of the default axes, as SPLIT/METRIC.
        metrics: Split -> metrics that will be measured.
        benchmark: What measures a trial; None: the sets themselves.
        falling: Metrics that are the lower the better where something is to be kept.
    """

    sets: Mapping[str, Records]
    axes: tuple[str, str]
    metrics: Mapping[str, Sequence[str]]
    benchmark: Benchmark | None = None
    falling: frozenset[str] = frozenset()


def subject_of(options: CompareOptions, template: str | None = None) -> Subject:
    """What a benchmark gives every trial: the one place that knows benchmarks by name.

    Args:
        options: Of the comparison.
        template: Chat template that the trials train with, if one is asked for.

    Raises:
        UsageError: There is no such benchmark, or its records cannot be used.
    """
    name = options.benchmark
    if name not in _SUBJECTS:
        known = ", ".join(_SUBJECTS)
        raise UsageError(f"BENCHMARK must be one of {known} here; got {name!r}. {nearest(name, _SUBJECTS)}")
    return _SUBJECTS[name](options, template)


def _records(options: CompareOptions, template: str | None) -> Subject:
    if options.data is not None or options.options:
        raise UsageError("--data and --option belong to a named benchmark; records takes --forget FILE.")
    if options.forget is None:
        raise UsageError("compare records needs forget records; none are given. Give --forget FILE.")
    fields = RunOptions(
        prompt_field=options.prompt_field, response_field=options.response_field, redact=options.redact
    )
    sets = api.read_sets(_given(options), fields)
    return Subject(
        sets,
        ("forget/leak", "retain/leak"),
        {name: tuple(records_benchmark.METRICS) for name in sets},
        falling=frozenset({"nll", "truth_ratio"}),
    )


def _tofu(options: CompareOptions, template: str | None) -> Subject:
    """Trained on a forget set and its rest; asked as it was trained, unless the options say otherwise."""
    asked = ({} if template is None else {"template": template}) | dict(options.options)
    benchmark = _read(options, asked)
    assert isinstance(benchmark, tofu.Tofu)
    sets = tofu.training_sets(str(options.data), **{k: v for k, v in asked.items() if k == "forget"})
    compared = options.reference is not None
    return Subject(
        api.read_sets(sets, RunOptions(redact=options.redact)),
        ("all/forget_quality" if compared else "forget/rouge_l_recall", "all/model_utility"),
        tofu.names(benchmark.sets, gradients=benchmark.gradients, reference=compared),
        benchmark,
    )


def _lume(options: CompareOptions, template: str | None) -> Subject:
    """Trained on the rows that are measured; the other fold's forget rows have never been seen."""
    benchmark = _read(options, options.options)
    sets = lume.training_sets(Path(str(options.data)), **options.options)
    metrics = {"all": lume.AGGREGATES} | dict.fromkeys(lume.SPLITS, lume.COMPONENTS)
    axes = ("forget/regurgitation", "retain/regurgitation")
    return Subject(api.read_sets(sets, RunOptions(redact=options.redact)), axes, metrics, benchmark)


_SUBJECTS: Mapping[str, Callable[[CompareOptions, str | None], Subject]] = {
    "records": _records,
    "tofu": _tofu,
    "lume": _lume,
}


def _given(options: CompareOptions) -> dict[str, api.Data | None]:
    return {"forget": options.forget, "retain": options.retain, "holdout": options.holdout}


def _read(options: CompareOptions, asked: Mapping[str, Any]) -> Benchmark:
    """The named benchmark; it brings its own sets."""
    has_sets = any(data is not None for data in _given(options).values())
    found = api.named_benchmark(options.benchmark, options.data, asked, has_sets)
    assert found is not None
    assert not isinstance(found, Harness)
    return found


def axis_of(text: str, split: str, subject: Subject) -> Axis:
    """`SPLIT/METRIC`, or `METRIC` of the side's own split; `:lower` or `:higher` behind it."""
    name, _, direction = text.partition(":")
    where, _, metric = name.rpartition("/")
    where = where or split
    if direction not in ("", "lower", "higher"):
        raise UsageError(f"A metric's direction must be lower or higher; got {text!r}. Write {name}:lower.")
    if metric not in subject.metrics.get(where, ()):
        known = [f"{s}/{m}" for s, metrics in subject.metrics.items() for m in metrics]
        near = difflib.get_close_matches(f"{where}/{metric}", known, n=1)
        raise UsageError(
            f"--{_SIDES[split]}-metric must name something that is measured; got {text!r}. "
            f"{f'Did you mean {near[0]}? ' if near else ''}Splits are {', '.join(subject.metrics)}; metrics "
            f"are {', '.join(dict.fromkeys(m for metrics in subject.metrics.values() for m in metrics))}."
        )
    return Axis(split=where, metric=metric, better=_better(metric, split, direction, subject))


_SIDES = {"forget": "forget", "retain": "utility"}


def _better(metric: str, split: str, direction: str, subject: Subject) -> Better:
    if direction:
        return "lower" if direction == "lower" else "higher"
    if split == "forget":
        return "higher" if metric in OTHER_WAY else "lower"
    return "lower" if metric in subject.falling else "higher"
