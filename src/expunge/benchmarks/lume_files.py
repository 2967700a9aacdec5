"""The files of LUME's official evaluation script: its per-row results in, ours out.

`evaluate_generations.py` leaves, per process, `forget_<n>.csv` and `retain_<n>.csv` (id, task, input,
expected_output, model_output, nll) and `mia_results/{member,nonmember}_<n>.csv` (id, nll); and one JSON
object of results, `evaluation_results.jsonl`. Rows may stand in `.jsonl` files of the same names and fields.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.benchmarks.benchmark import Measured
from expunge.benchmarks.lume import DOCUMENTS, Lume, evidence
from expunge.benchmarks.lume_scores import KINDS, SPLITS, TASKS, Evidence, Item, kind, measured
from expunge.benchmarks.mmlu import reported
from expunge.errors import UsageError
from expunge.record import write_atomically
from expunge.records import Records
from expunge.sources import open_source, shown
from expunge.tables import Tables

ROW_FIELDS = ("id", "task", "input", "expected_output", "model_output", "nll")
DOCUMENT_FIELDS = ("id", "nll")
RESULTS = "evaluation_results.jsonl"


def read_generations(folder: Path, benchmark: Lume | None = None, seed: int = 0) -> Measured:
    """LUME's numbers from the per-row files that the official script, or `write_generations`, left.

    A row that stands twice counts twice, as in the script, which repeats rows to give every process as many.

    Args:
        folder: Holds the files; MMLU is taken from the results file, or from `metrics.json`, if there.
        benchmark: The data that the files should be of; None takes what is in the files for it.
        seed: Of the intervals.

    Raises:
        UsageError: A file is missing or malformed, or is of other rows than the benchmark's.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"--generations must be a folder; there is no folder {folder}. Name the script's output."
        )
    notes: list[str] = []
    items = {}
    for split in SPLITS:
        rows = _rows(folder, split, ROW_FIELDS)
        if not rows:
            raise UsageError(
                f"{folder} must hold {split}_0.csv as the official script writes it (run it with "
                "--keep_files); it holds none. Name the folder given to it as --output_dir."
            )
        items[split] = [_item(row, place) for place, row in rows]
        notes += _repeats(split, [item.id for item in items[split]])
        if benchmark is not None:
            _check_rows(folder, split, items[split], benchmark.rows[split])
    losses = {name: _losses(folder, name, benchmark, notes) for name in DOCUMENTS}
    return measured(Evidence(items, losses["member"], losses["nonmember"], _mmlu(folder), tuple(notes)), seed)


def write_generations(benchmark: Lume, tables: Tables, folder: Path, seed: int = 0) -> list[Path]:
    """Write the files that the official script would leave, for one process.

    Args:
        benchmark: Whose parts the tables are of.
        tables: Of one model.
        folder: Created if need be; files of these names are replaced.
        seed: Of the intervals, which the results file does not hold.

    Returns:
        The files written.
    """
    found = evidence(benchmark, tables)
    written = []
    for split, items in found.items.items():
        losses = [score.nll for score in tables[f"{split}_nll"].scores]
        rows = [
            (item.id, item.task, item.prompt, item.response, item.generation, loss)
            for item, loss in zip(items, losses, strict=True)
        ]
        written.append(_write_csv(folder / f"{split}_0.csv", ROW_FIELDS, rows))
    for name, documents in benchmark.documents.items():
        losses = [score.nll for score in tables[name].scores]
        ids = [record.prompt for record in documents]
        path = folder / "mia_results" / f"{name}_0.csv"
        written.append(_write_csv(path, DOCUMENT_FIELDS, zip(ids, losses, strict=True)))
    results = json.dumps(official_results(measured(found, seed)))
    return [*written, write_atomically(folder / RESULTS, results)]


def official_results(found: Measured) -> dict[str, Any]:
    """The results under the official script's names, -1 where its final score is absent as there.

    Args:
        found: What `measured` made of one model.
    """
    results: dict[str, Any] = {}
    terms = []
    for split in SPLITS:
        metrics = found.splits[split]
        inner: dict[str, Any] = {
            f"overall-{name}-score": metrics[name].value for name in KINDS.values() if name in metrics
        }
        for task in TASKS:
            keys = {f"{name}-score": f"{name}_{task.lower()}" for name in KINDS.values()}
            values = {key: metrics[name].value for key, name in keys.items() if name in metrics}
            if values:
                inner[task] = values
                terms += [1 - value if split == "forget" else value for value in values.values()]
        results[f"{split}-set"] = inner
    every = found.splits["all"]
    names = {
        "mia_loss_acc": "membership_auc",
        "mmlu_average": "mmlu",
        "harmonic-mean-task-aggregate": "task_aggregate",
        "mia_final_score": "membership_score",
    }
    results["aggregated-terms"] = terms
    results |= {key: every[name].value for key, name in names.items() if name in every}
    results["aggregate-score"] = every["final_score"].value if "final_score" in every else -1
    return results


# --- in


def _rows(folder: Path, stem: str, fields: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Place and row of all files `<stem>_<n>.csv` or .jsonl, by n."""
    files = [
        file for suffix in ("csv", "jsonl") for file in sorted(folder.glob(f"{stem}_*.{suffix}"), key=_number)
    ]
    rows = []
    for file in files:
        source = open_source(file, stem, "")
        for number, row in source.rows:
            place = f"{source.label}, {source.unit} {number}"
            absent = [name for name in fields if not isinstance(row, Mapping) or name not in row]
            if absent:
                found = ", ".join(map(str, row)) if isinstance(row, Mapping) else shown(row)
                raise UsageError(
                    f"{place}: a row must have {', '.join(fields)}; {absent[0]} is missing from {found}. "
                    "Is this a file of LUME's evaluation script?"
                )
            rows.append((place, row))
    return rows


def _number(file: Path) -> tuple[int, str]:
    process = file.stem.rpartition("_")[2]
    return (int(process) if process.isdecimal() else 0, file.name)


def _item(row: Mapping[str, Any], place: str) -> Item:
    row_id, task = str(row["id"]), str(row["task"])
    if not kind(row_id) or task not in TASKS:
        rule = f"a row must have an id that ends in sc or qa and a digit, and a task of {', '.join(TASKS)}"
        raise UsageError(f"{place}: {rule}; found id {row_id!r}, task {task!r}. Is this LUME?")
    prompt, response, generation = (str(row[name]) for name in ("input", "expected_output", "model_output"))
    return Item(row_id, task, prompt, response, generation, _loss(row, place))


def _loss(row: Mapping[str, Any], place: str) -> float:
    text = row["nll"]
    try:
        return float(text) if text not in ("", None) else math.nan  # pandas writes NaN as nothing
    except (TypeError, ValueError):
        raise UsageError(f"{place}: nll must be a number; found {shown(text)}. Mend the row.") from None


def _repeats(split: str, ids: Sequence[str]) -> list[str]:
    twice = len(ids) - len(set(ids))
    if not twice:
        return []
    return [
        f"{twice} {split} rows stand twice and count twice, as in the official script with several processes."
    ]


def _check_rows(folder: Path, split: str, items: Sequence[Item], records: Records) -> None:
    """The files must answer the benchmark's questions: the same ids, and the same texts under each."""
    truth = {str(record.metadata["id"]): record for record in records}
    ids = {item.id for item in items}
    if ids != truth.keys():
        stray, absent = sorted(ids - truth.keys()), sorted(truth.keys() - ids)
        example = f"{stray[0]} is not among them" if stray else f"{absent[0]} is missing"
        raise UsageError(
            f"{folder}'s {split} rows must be the {len(truth)} rows of {records.source}; it has {len(ids)}, "
            f"and {example}. Choose the fold and sample that the script was run on."
        )
    for item in items:
        record = truth[item.id]
        if (item.prompt, item.response) != (record.prompt, record.response):
            raise UsageError(
                f"{folder}'s {split} row {item.id} must have input and output of {records.source}; it "
                "has others. The two are of different data."
            )


def _losses(folder: Path, name: str, benchmark: Lume | None, notes: list[str]) -> list[float]:
    rows = _rows(folder / "mia_results", name, DOCUMENT_FIELDS)
    ids = [str(row["id"]) for _, row in rows]
    notes += _repeats(name, ids)
    if rows and benchmark is not None and benchmark.documents:
        truth = {record.prompt for record in benchmark.documents[name]}
        if set(ids) != truth:
            raise UsageError(
                f"{folder / 'mia_results'} must have the {len(truth)} {name} documents of "
                f"{benchmark.documents[name].source}; it has {len(set(ids))}, "
                f"{len(truth & set(ids))} of them the same. Choose the documents that the script was run on."
            )
    return [_loss(row, place) for place, row in rows]


def _mmlu(folder: Path) -> float | None:
    """The accuracy that the script was given, or that lies beside its files; None where there is none."""
    for name in (RESULTS, "evaluation_results.json"):
        if not (folder / name).is_file():
            continue
        try:
            results = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError:
            results = None
        value = results.get("mmlu_average", math.nan) if isinstance(results, dict) else None
        if not isinstance(value, int | float):
            raise UsageError(
                f"{folder / name} must be one JSON object, with a number as mmlu_average if it has one; "
                f"found {shown(results if value is None else value)}. Remove or mend it."
            )
        if not math.isnan(value):
            return float(value)
    metrics = folder / "metrics.json"
    return reported(metrics) if metrics.is_file() else None


# --- out


def _write_csv(path: Path, fields: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """As `pandas` reads it back: texts in quotes, numbers without."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(rows)
    return write_atomically(path, stream.getvalue())
