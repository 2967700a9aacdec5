"""What a comparison is about: which records every trial gets, and which two numbers weigh it.

The one place where a comparison knows benchmarks by name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge import api
from expunge.benchmarks import records as records_benchmark
from expunge.comparison_record import Axis, Better
from expunge.errors import UsageError
from expunge.progress import Reporter, Silent
from expunge.runs import RunOptions

AXES: Mapping[str, tuple[str, str]] = {
    "records": ("forget/leak", "retain/leak"),
    "tofu": ("forget/rouge_l_recall", "all/model_utility"),
    "lume": ("forget/regurgitation", "retain/regurgitation"),
}
"""Benchmark -> what forgetting and utility are by default, as SPLIT/METRIC."""

OTHER_WAY = {"nll", "truth_ratio", "forget_quality", "membership_score"}
"""Metrics that rise when a record is forgotten; `forget_quality` is wanted high on the forget side, too."""


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison that are not settings of its trials.

    Args:
        benchmark: `records`: the user's own forget, retain and holdout.
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
        prompt_field: Name of the prompt in the data.
        response_field: Name of the response in the data.
        reporter: Is told of every phase.
    """

    benchmark: str = "records"
    forget: api.Data | None = None
    retain: api.Data | None = None
    holdout: api.Data | None = None
    forget_metric: str | None = None
    utility_metric: str | None = None
    keep_models: bool = False
    evaluation_seed: int | None = None
    resume: bool = False
    overwrite: bool = False
    prompt_field: str | None = None
    response_field: str | None = None
    reporter: Reporter = field(default_factory=Silent)

    @classmethod
    def take(cls, settings: Mapping[str, Any]) -> tuple[CompareOptions, dict[str, Any]]:
        """Split options of the comparison from settings of its trials."""
        mine = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in settings.items() if k in mine}), {
            k: v for k, v in settings.items() if k not in mine
        }


@dataclass(frozen=True)
class Subject:
    """What every trial is given, whatever the benchmark.

    Attributes:
        sets: forget, retain, holdout, as `unlearn` takes them.
        options: More words for `unlearn`.
        axes: Names of the default axes.
        metrics: Split -> metrics that will be measured; None where that is not known beforehand.
    """

    sets: Mapping[str, Any]
    axes: tuple[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[str]] | None = None


def subject_of(options: CompareOptions) -> Subject:
    """What a benchmark gives every trial: the one place that knows benchmarks by name.

    Raises:
        UsageError: There is no such benchmark, or its records cannot be used.
    """
    if options.benchmark != "records":
        raise UsageError(f"BENCHMARK must be records; got {options.benchmark!r}.")
    given = {"forget": options.forget, "retain": options.retain, "holdout": options.holdout}
    if options.forget is None:
        raise UsageError("compare records needs forget records; none are given. Give --forget FILE.")
    fields = RunOptions(prompt_field=options.prompt_field, response_field=options.response_field)
    sets = api.read_sets(given, fields)
    return Subject(sets, AXES["records"], metrics={name: tuple(records_benchmark.METRICS) for name in sets})


def axis_of(text: str, split: str, subject: Subject) -> Axis:
    """`SPLIT/METRIC`, or `METRIC` of the side's own split; `:lower` or `:higher` behind it."""
    name, _, direction = text.partition(":")
    where, _, metric = name.rpartition("/")
    where = where or split
    if direction not in ("", "lower", "higher"):
        raise UsageError(f"A metric's direction must be lower or higher; got {text!r}. Write {name}:lower.")
    if subject.metrics is not None and metric not in subject.metrics.get(where, ()):
        known = [f"{s}/{m}" for s, metrics in subject.metrics.items() for m in metrics]
        near = difflib.get_close_matches(f"{where}/{metric}", known, n=1)
        raise UsageError(
            f"--{_SIDES[split]}-metric must name something that is measured; got {text!r}. "
            f"{f'Did you mean {near[0]}? ' if near else ''}Splits are {', '.join(subject.metrics)}; metrics "
            f"are {', '.join(next(iter(subject.metrics.values())))}."
        )
    return Axis(split=where, metric=metric, better=_better(metric, split, direction))


_SIDES = {"forget": "forget", "retain": "utility"}


def _better(metric: str, split: str, direction: str) -> Better:
    if direction:
        return "lower" if direction == "lower" else "higher"
    if split == "forget":
        return "higher" if metric in OTHER_WAY else "lower"
    return "lower" if metric in ("nll", "truth_ratio") else "higher"
