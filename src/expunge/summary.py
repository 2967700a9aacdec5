"""The end of a run in a terminal: one sentence, one small table; or one JSON object for scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from expunge.record import Metric, RunRecord, Stage
from expunge.report.wording import ALL, is_benchmark

ROWS = {
    "leak": "verbatim leak",
    "rouge_l_recall": "ROUGE-L recall",
    "probability": "response probability",
    "nll": "NLL per token",
    "truth_ratio": "truth ratio",
    "membership_loss_auc": "membership AUC (loss)",
    "membership_min_k_auc": "membership AUC (min-k)",
}


def table(record: RunRecord) -> Iterator[RenderableType]:
    """What a person reads at the end of a run."""
    stages = [stage for stage in get_args(Stage) if stage in record.evaluations]
    if stages:
        grid = Table(box=None, pad_edge=False, header_style="bold")
        grid.add_column("")
        grid.add_column("set")
        for stage in stages:
            grid.add_column(stage, justify="right")
        for metric, title in _titles(record).items():
            for split in _splits(record, metric):
                values = [record.evaluations[stage].splits.get(split, {}).get(metric) for stage in stages]
                grid.add_row(title, split, *(map(_cell, values)))
                title = ""
        yield grid
    if record.stop:
        yield Text(f"\nStopped ({record.stop.reason}) after {record.stop.step} steps. {record.stop.sentence}")
    for note in record.notes:
        yield Text(f"Note: {note}")


def summary(record: RunRecord, folder: Path | None) -> dict[str, Any]:
    """What a script reads at the end of a run."""
    return {
        "output": str(folder) if folder else None,
        "kind": record.kind,
        "method": record.method,
        "stop": record.stop.model_dump() if record.stop else None,
        "evaluations": {
            stage: {
                split: {name: metric.model_dump() for name, metric in metrics.items()}
                for split, metrics in evaluation.splits.items()
            }
            for stage, evaluation in record.evaluations.items()
        },
        "timings": record.timings,
        "peak_memory_bytes": record.peak_memory_bytes,
        "notes": record.notes,
    }


def _titles(record: RunRecord) -> dict[str, str]:
    """Metric -> title of its row: a choice on one's own records; of a benchmark all, aggregates first."""
    splits = [split for evaluation in record.evaluations.values() for split in evaluation.splits.items()]
    if not is_benchmark(record):
        return ROWS
    ordered = sorted(splits, key=lambda split: split[0] != ALL)
    return {name: name.replace("_", " ") for _, metrics in ordered for name in metrics}


def _splits(record: RunRecord, metric: str) -> list[str]:
    found = [
        split for e in record.evaluations.values() for split, metrics in e.splits.items() if metric in metrics
    ]
    return list(dict.fromkeys(found))


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    interval = "" if math.isnan(metric.low) else f" \\[{_number(metric.low)}, {_number(metric.high)}]"
    return _number(metric.value) + interval


def _number(value: float) -> str:
    """Two digits behind the point, or two that count where these would all be zero."""
    return f"{value:.1e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"
