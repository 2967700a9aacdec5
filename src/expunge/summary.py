"""The end of a run in a terminal: one sentence, one small table; or one JSON object for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from expunge.record import Metric, RunRecord

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
    stages = list(record.evaluations)
    if stages:
        grid = Table(box=None, pad_edge=False, header_style="bold")
        grid.add_column("")
        grid.add_column("set")
        for stage in stages:
            grid.add_column(stage, justify="right")
        for metric, title in ROWS.items():
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


def _splits(record: RunRecord, metric: str) -> list[str]:
    found = [
        split for e in record.evaluations.values() for split, metrics in e.splits.items() if metric in metrics
    ]
    return list(dict.fromkeys(found))


def _cell(metric: Metric | None) -> str:
    return "–" if metric is None else f"{metric.value:.2f} \\[{metric.low:.2f}, {metric.high:.2f}]"
