"""Results that others' code left: their files in, our record out. No model is loaded."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from expunge import output as folders
from expunge.benchmarks.benchmark import Measured
from expunge.benchmarks.lume import Lume
from expunge.benchmarks.samples import samples
from expunge.environment import environment, installed
from expunge.errors import UsageError
from expunge.locks import exclusive
from expunge.record import DataEntry, Evaluation, RunRecord, write_record
from expunge.redaction import REDACTED, redacted
from expunge.report import write_report
from expunge.sources import REDACT


@exclusive
def read_results(
    benchmark: str,
    results: Path,
    *,
    reference: Path | None = None,
    output: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    rows: Lume | None = None,
    redact: bool = False,
) -> RunRecord:
    """Turn a benchmark's own result files into a record and its page.

    Args:
        benchmark: "tofu": a log of the authors (`eval_log_aggregated.json`) or of OpenUnlearning
            (`*_EVAL.json`), also with .gz. "lume": the folder of the official script's per-row files.
        results: The file or folder.
        reference: TOFU: the log of the retain model, for forget quality and privleak.
        output: Folder for `record.json` and `report.html`, new or empty; None writes nothing.
        seed: Of the intervals.
        overwrite: Replace an earlier run in `output`.
        rows: LUME: the data that the files should be of; None takes what is in the files for it.
        redact: Record and page hold no prompt, response or generation.

    Raises:
        UsageError: The benchmark has no such files, or they cannot be used.
    """
    REDACT.set(redact)
    found = _measured(benchmark, results, reference, seed, rows)
    shown = samples({"before": found})
    given = {"results": results, "reference": reference}
    read = {name: path for name, path in given.items() if path is not None}
    record = RunRecord(
        expunge_version=installed("expunge") or "0",
        kind="evaluate",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        configuration={"benchmark": benchmark, "computed": "elsewhere; read from result files"},
        seed=seed,
        data={name: _entry(path) for name, path in read.items()},
        environment=environment(),
        evaluations={"before": _evaluation(found)},
        samples=redacted(shown) if redact else shown,
        notes=[
            "The model was run by other code; its answers and losses were read from files.",
            *found.notes,
            *([REDACTED] if redact else []),
        ],
    )
    if output is not None:
        folder = folders.claim(output, overwrite=overwrite, inputs=read.values())
        if overwrite:
            folders.clear(folder)
        write_record(record, folder)
        write_report(record, folder)
    return record


def _measured(
    benchmark: str, results: Path, reference: Path | None, seed: int, rows: Lume | None
) -> Measured:
    if benchmark == "tofu":
        from expunge.benchmarks.tofu.logs import from_tofu_logs

        return from_tofu_logs(results, reference, seed)
    if benchmark == "lume":
        from expunge.benchmarks.lume_files import read_generations

        if reference is not None:
            raise UsageError(
                "--reference-logs belongs to tofu; lume compares with no reference. Leave it out."
            )
        return read_generations(results, rows, seed)
    raise UsageError(
        f"Result files are read for tofu (--logs) and lume (--generations); got {benchmark!r}. "
        "Give --model to measure a model."
    )


def _evaluation(found: Measured) -> Evaluation:
    splits = {split: dict(metrics) for split, metrics in found.splits.items()}
    return Evaluation(splits=splits, seconds=0.0, scored_tokens=0, generated_tokens=0)


def _entry(path: Path) -> DataEntry:
    """The hash of a file; of a folder, that of its files' names and hashes."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    hashes = [(str(file.relative_to(path)), sha256(file.read_bytes()).hexdigest()) for file in files]
    digest = hashes[0][1] if path.is_file() else sha256(repr(hashes).encode()).hexdigest()
    return DataEntry(source=str(path), sha256=digest, rows=len(files))
