"""The typed, versioned record of a comparison, made from the records of its trials and nothing else.

Written to `comparison.json`; the table, the page and the Markdown read only that. A change that an older
reader cannot understand raises `COMPARISON_SCHEMA`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from pydantic import Field

from expunge.alike import DEFAULT, kept, told
from expunge.environment import installed
from expunge.errors import UsageError
from expunge.front import Point, hypervolume, on_front
from expunge.record import (
    DataEntry,
    Entry,
    Environment,
    Metric,
    ModelEntry,
    RunRecord,
    Stop,
    read_versioned,
    write_atomically,
)
from expunge.trials import Trial

COMPARISON_SCHEMA: Final = 1
FILE = "comparison.json"

Better = Literal["lower", "higher"]
Status = Literal["pending", "interrupted", "done", "diverged", "failed"]
Splits = dict[str, dict[str, Metric]]


class Axis(Entry):
    """One of the two things that are weighed."""

    split: str
    metric: str
    better: Better

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return f"{self.split}/{self.metric}"

    def cost(self, value: float) -> float:
        """The value as a cost: less is better."""
        return value if self.better == "lower" else -value


class Spread(Entry):
    """A mean over seeds, with the least and the largest value."""

    mean: float
    low: float
    high: float
    seeds: int


class TrialEntry(Entry):
    """One trial: what was asked, how it ended, what was measured after it."""

    name: str = Field(description="its folder")
    method: str
    varied: dict[str, Any] = Field(description="the point of the grid")
    fixed: dict[str, Any] = Field(description="other settings that were asked for")
    resolved: dict[str, Any] = Field(
        default_factory=dict,
        description="what these came to with the defaults of then, but for what the machine decides",
    )
    seed: int
    evaluation_seed: int
    code: dict[str, str] = Field(
        default_factory=dict, description="the user's own code in the method, as in the trial's record"
    )
    status: Status = "pending"
    error: str = ""
    stop: Stop | None = None
    steps: int = 0
    seconds: float = Field(0.0, description="wall time of the training")
    splits: Splits = Field(default_factory=dict, description="metrics of the unlearned model")

    def value(self, axis: Axis) -> float | None:
        """What was measured on an axis; None if nothing was."""
        found = self.splits.get(axis.split, {}).get(axis.metric)
        return None if found is None else found.value


class Setting(Entry):
    """A method at one point of the grid, over its seeds."""

    method: str
    varied: dict[str, Any]
    trials: list[str]
    forget: Spread | None = None
    utility: Spread | None = None
    distance: Spread | None = Field(
        None, description="forget NLL after, minus the holdout's before unlearning; > 0: forgotten too hard"
    )
    steps: Spread | None = None
    seconds: Spread | None = None
    whole: bool = Field(description="every seed was run and measured; only these can be on the front")
    front: bool = False


class MethodEntry(Entry):
    """A method over all its settings that are whole."""

    method: str
    settings: int
    hypervolume: float | None


class Comparison(Entry):
    """A comparison, whole."""

    schema_version: Literal[1] = COMPARISON_SCHEMA
    expunge_version: str
    created: str = Field(description="ISO 8601, UTC")
    benchmark: str
    options: dict[str, Any] = Field(default_factory=dict, description="of the benchmark, as asked for")
    control: str | None = Field(None, description="a model that never saw the forget records, as named")
    source: str = Field(description="the model as the user named it")
    model: ModelEntry | None = None
    control_model: ModelEntry | None = Field(None, description="the control, as the trials' records have it")
    data: dict[str, DataEntry] = Field(default_factory=dict)
    environment: Environment | None = None
    forget_axis: Axis
    utility_axis: Axis
    before: Splits = Field(default_factory=dict, description="metrics of the model before unlearning")
    reference: tuple[float, float] | None = Field(None, description="worst corner of the hypervolume")
    trials: list[TrialEntry]
    settings: list[Setting] = Field(default_factory=list)
    methods: list[MethodEntry] = Field(default_factory=list)
    disk_bytes: int = 0
    models_kept: bool = False
    notes: list[str] = Field(default_factory=list)

    def of(self, setting: Setting) -> list[TrialEntry]:
        """The trials of a setting."""
        return [trial for trial in self.trials if trial.name in setting.trials]


def begun(trial: Trial, resolved: Mapping[str, Any] | None = None) -> TrialEntry:
    """A trial that has not ended yet.

    Args:
        trial: What was asked.
        resolved: What that comes to with the defaults of now.
    """
    return TrialEntry(
        name=trial.name,
        method=trial.method,
        varied=plain(trial.varied),
        fixed=plain(trial.fixed),
        resolved=kept(resolved or {}),
        seed=trial.seed,
        evaluation_seed=trial.evaluation_seed,
        code=dict(trial.code),
    )


def ended(entry: TrialEntry, record: RunRecord) -> TrialEntry:
    """The same trial with what its record says."""
    after = record.evaluations.get("after")
    return entry.model_copy(
        update={
            "status": status_of(record),
            "error": "",
            "stop": record.stop,
            "steps": record.stop.step if record.stop else len(record.history),
            "seconds": max(record.timings.get("train", 0.0), sum(step.seconds for step in record.history)),
            "splits": after.splits if after else {},
        }
    )


def status_of(record: RunRecord) -> Status:
    """How a run ended; one that diverged and left no model is final, one without its evaluation is not."""
    if record.stop is None or record.stop.reason == "interrupted":
        return "interrupted"
    if "after" in record.evaluations:
        return "done"
    lost = record.stop.reason == "diverged" and record.stop.restored_step is None
    return "diverged" if lost else "interrupted"


def summarise(comparison: Comparison, records: Mapping[str, RunRecord]) -> Comparison:
    """Everything that follows from the trials: means over seeds, front, hypervolumes, notes.

    Args:
        comparison: With all trials as they stand.
        records: Name of a trial -> its record, of those that have one.

    Raises:
        UsageError: The records are of different models or data.
    """
    known = list(records.values())
    _check_same(comparison, records)
    before = next((r.evaluations["before"].splits for r in known if "before" in r.evaluations), {})
    settings = _settings(comparison, before)
    axes = comparison.forget_axis, comparison.utility_axis
    reference = _reference(axes, before, settings)
    first = known[0] if known else None
    return comparison.model_copy(
        update={
            "expunge_version": installed("expunge") or "0",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": first.models.get("before") if first else None,
            "control_model": next((r.models["control"] for r in known if "control" in r.models), None),
            "environment": first.environment if first else None,
            "before": before,
            "reference": reference,
            "settings": settings,
            "methods": list(_methods(axes, settings, reference)),
            "notes": [*_notes(comparison, known, axes, before), *_uneven(settings, records)],
        }
    )


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `comparison.json` into `folder` atomically."""
    return write_atomically(folder / FILE, comparison.model_dump_json(indent=1) + "\n")


def read_comparison(folder: Path) -> Comparison:
    """Read the `comparison.json` in a folder.

    Raises:
        UsageError: The file is missing, is not a comparison, or has another schema.
    """
    return read_versioned(folder / FILE, Comparison, COMPARISON_SCHEMA, "a comparison", "a comparison")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON keeps them."""
    return {key: v if isinstance(v, int | float | str | None) else str(v) for key, v in settings.items()}


def _check_same(comparison: Comparison, records: Mapping[str, RunRecord]) -> None:
    """One model and one set of data; by hash, since a name may have been given to something else since."""
    expected = {f"{name} records": entry.sha256 for name, entry in comparison.data.items()}
    for trial, record in records.items():
        found = {f"{name} records": entry.sha256 for name, entry in record.data.items()}
        models = (("model", "before"), ("reference", "control"))
        found |= {what: record.models[stage].sha256 for what, stage in models if stage in record.models}
        for what, _ in models:
            if what in found:
                expected.setdefault(what, found[what])
        for what in expected.keys() & found.keys():
            if found[what] != expected[what]:
                raise UsageError(
                    f"All trials of a comparison must have the same {what}; those of {trial} have another "
                    "hash. Compare in another --output, or give --overwrite."
                )


def _settings(comparison: Comparison, before: Splits) -> list[Setting]:
    groups: dict[str, list[TrialEntry]] = {}
    for trial in comparison.trials:
        groups.setdefault(json.dumps([trial.method, trial.varied], sort_keys=True), []).append(trial)
    found = [_setting(comparison, trials, before) for trials in groups.values()]
    axes = comparison.forget_axis, comparison.utility_axis
    rows = [setting for setting in found if _point(axes, setting) is not None]
    front = on_front([p for setting in rows if (p := _point(axes, setting)) is not None])
    best = {id(setting) for setting, first in zip(rows, front, strict=True) if first}
    marked = [setting.model_copy(update={"front": id(setting) in best}) for setting in found]
    return sorted(marked, key=lambda setting: _rank(axes, setting))


def _rank(axes: tuple[Axis, Axis], setting: Setting) -> tuple[bool, float, float]:
    """The front first, then the rest; in each what forgets most; what was not measured last."""
    costs = [
        math.inf if s is None else axis.cost(s.mean)
        for axis, s in zip(axes, (setting.forget, setting.utility), strict=True)
    ]
    return not setting.front, costs[0], costs[1]


def _setting(comparison: Comparison, trials: Sequence[TrialEntry], before: Splits) -> Setting:
    done = [trial for trial in trials if trial.status == "done"]
    axes = comparison.forget_axis, comparison.utility_axis
    unseen = before.get("holdout", {}).get("nll")
    forgotten = [trial.splits.get("forget", {}).get("nll") for trial in done]
    forget, utility = (_spread(trial.value(axis) for trial in done) for axis in axes)
    measured = len(done) == len(trials)
    return Setting(
        method=trials[0].method,
        varied=trials[0].varied,
        trials=[trial.name for trial in trials],
        forget=forget,
        utility=utility,
        distance=_spread(nll.value - unseen.value for nll in forgotten if nll is not None)
        if unseen
        else None,
        steps=_spread(float(trial.steps) for trial in done),
        seconds=_spread(trial.seconds for trial in done),
        whole=measured and forget is not None and utility is not None,
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    if not found:
        return None
    return Spread(mean=fmean(found), low=min(found), high=max(found), seeds=len(found))


def _point(axes: tuple[Axis, Axis], setting: Setting) -> Point | None:
    if not setting.whole or setting.forget is None or setting.utility is None:
        return None
    return axes[0].cost(setting.forget.mean), axes[1].cost(setting.utility.mean)


BUDGET = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "precision", "template")
"""Settings that no method should have more of than another."""

UNBOUNDED = frozenset({"nll", "privleak"})
"""Metrics whose values are not between 0 and 1."""


def _reference(
    axes: tuple[Axis, Axis], before: Splits, settings: Sequence[Setting]
) -> tuple[float, float] | None:
    """The worst corner: 0 or 1 where values lie between them, else the worst value measured."""
    corner = []
    for axis, spreads in zip(axes, zip(*((s.forget, s.utility) for s in settings), strict=True), strict=True):
        values = [spread.mean for spread in spreads if spread is not None and math.isfinite(spread.mean)]
        start = before.get(axis.split, {}).get(axis.metric)
        values += [start.value] if start is not None and math.isfinite(start.value) else []
        if not values:
            return None
        bounded = axis.metric not in UNBOUNDED and all(0 <= value <= 1 for value in values)
        worst = max(values, key=axis.cost)
        corner.append(float(axis.better == "lower") if bounded else worst)
    return corner[0], corner[1]


def _methods(
    axes: tuple[Axis, Axis], settings: Sequence[Setting], reference: tuple[float, float] | None
) -> Iterable[MethodEntry]:
    for method in dict.fromkeys(setting.method for setting in settings):
        mine = [setting for setting in settings if setting.method == method]
        points = [point for setting in mine if (point := _point(axes, setting)) is not None]
        area = None
        if points and reference is not None:
            area = hypervolume(points, (axes[0].cost(reference[0]), axes[1].cost(reference[1])))
        yield MethodEntry(method=method, settings=len(points), hypervolume=area)


def _notes(
    comparison: Comparison, records: Sequence[RunRecord], axes: tuple[Axis, Axis], before: Splits
) -> Iterable[str]:
    for axis in axes:
        if before and axis.metric not in before.get(axis.split, {}):
            known = ", ".join(f"{split}/{metric}" for split, found in before.items() for metric in found)
            yield f"{axis.name} was not measured, so no picture can be drawn. Measured were: {known}."
    if len({record.environment.model_dump_json() for record in records}) > 1:
        yield "The trials ran on different machines or software; times are not comparable."
    if any("Resumed from a checkpoint" in note for record in records for note in record.notes):
        yield "Some trials were interrupted and continued."
    unfinished = sum(trial.status in ("pending", "interrupted") for trial in comparison.trials)
    if unfinished:
        yield f"{unfinished} of {len(comparison.trials)} trials have not ended yet; --resume continues."


def _uneven(settings: Sequence[Setting], records: Mapping[str, RunRecord]) -> Iterable[str]:
    """What trials that one mean or one table is made of were not given alike."""
    done = {name: _given(record) for name, record in records.items() if status_of(record) == "done"}
    for setting in settings:
        mine = [done[name] for name in setting.trials if name in done]
        what = f"{setting.method} {setting.varied}" if setting.varied else setting.method
        for key in sorted({key for found in mine for key in found}):
            if len(values := _values(mine, key)) > 1:
                yield f"The means of {what} are of trials that differ in {key} ({', '.join(values)})."
    for key in BUDGET:
        usual = [name for setting in settings if key not in setting.varied for name in setting.trials]
        if len(values := _values((done[name] for name in usual if name in done), key)) > 1:
            yield f"Not all methods had the same {key} ({', '.join(values)})."


def _given(record: RunRecord) -> dict[str, Any]:
    """The settings of a trial, and the user's own code."""
    return record.configuration | {f"the code of {name}": sha[:12] for name, sha in record.code.items()}


def _values(configurations: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    """The values of a setting, each once, in the order met; one that is not there is its default."""
    return list(dict.fromkeys(told(found.get(key, DEFAULT)) for found in configurations))
