"""Comparisons as real ones are written, for tests of what reads them."""

from __future__ import annotations

from expunge.comparison_record import Axis, Comparison, begun, ended, summarise
from expunge.record import RunRecord, Stop
from expunge.trials import Trial
from record_factory import evaluation, run_record

LEVELS = {
    "ngdiff": (0.04, 0.93, 3.3),
    "npo": (0.21, 0.81, 2.4),
    "grad-diff": (0.06, 0.52, 6.2),
    "simnpo": (0.45, 0.95, 1.2),
    "grad-ascent": (0.0, 0.02, 30.0),
    "mollm": (0.05, 0.92, 3.6),
    "kl-min": (0.22, 0.8, 2.6),
}
"""Method -> leak on forget, exact answers on retain, forget NLL."""


def record_of(trial: Trial, level: tuple[float, float, float], **changes: object) -> RunRecord:
    """A record as the trial leaves it; later seeds are a little worse."""
    forget, retain, nll = level
    shift = 0.02 * trial.seed
    record = run_record(after=evaluation(min(1, forget + shift), max(0, retain - shift), 0.02, nll))
    return record.model_copy(update={"method": trial.method, "seed": trial.seed, **changes})


def diverged(trial: Trial) -> RunRecord:
    """A record without a model after."""
    record = record_of(trial, (0.0, 0.0, 1.0))
    stop = Stop(reason="diverged", sentence="The losses are no longer finite.", step=7)
    return record.model_copy(
        update={"stop": stop, "evaluations": {"before": record.evaluations["before"]}, "samples": []}
    )


def header(trials: list[Trial], **changes: object) -> Comparison:
    """A comparison in which nothing has run."""
    fields: dict[str, object] = {
        "expunge_version": "",
        "created": "",
        "benchmark": "records",
        "source": "/models/people",
        "data": run_record().data,
        "forget_axis": Axis(split="forget", metric="leak", better="lower"),
        "utility_axis": Axis(split="retain", metric="leak", better="higher"),
        "trials": [begun(trial) for trial in trials],
    }
    return Comparison.model_validate(fields | changes)


def comparison(seeds: int = 3, **changes: object) -> Comparison:
    """Seven methods, one of them on a grid, one with a seed that diverged; an own one that failed."""
    trials = [Trial(method, seed=seed) for method in LEVELS for seed in range(seeds)]
    trials += [Trial("npo", {"learning_rate": 1e-5}, seed=seed) for seed in range(seeds)]
    records = {trial.name: record_of(trial, LEVELS[trial.method]) for trial in trials}
    lost = Trial("kl-min", seed=seeds - 1)
    records[lost.name] = diverged(lost)
    found = header([*trials, Trial("rmu")], **changes)
    entries = [
        ended(entry, records[entry.name]) if entry.name in records else entry for entry in found.trials
    ]
    lost_code = {"my_losses.py": "ab" * 32}
    entries[-1] = entries[-1].model_copy(
        update={"status": "failed", "error": "RuntimeError: out of memory | [x]", "code": lost_code}
    )
    return summarise(found.model_copy(update={"trials": entries}), records)
