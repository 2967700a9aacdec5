"""Successive erasure requests on LUME Task 2: leak of every earlier set, and utility, after each of them.

    python benchmarks/successive_requests.py --data LUME_FOLDER --output benchmarks/results/requests.json
        [--model smollm2-135m] [--work FOLDER] [--requests 4] [--people 5] [--kept 20] [--seeds 0]
        [--method ngdiff] [--set max_steps=200] [--teach max_steps=300]

`LUME_FOLDER` holds train/ and validation/ with forget.jsonl and retain.jsonl. The first people of the
training folds are taught once; each request then removes the next `--people` of the forget fold. Two arms:
`after` runs each request with `--after` the one before, `alone` runs it as if it were the only one, on the
same model. What later requests will ask for is retained until then. After every request all sets are measured
on all records. What exists in the work folder is skipped, so that an interrupted study continues.

The file is not called requests.py: its folder stands on Python's path, and a package has that name.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from study import ended, given, go_on_if_ended, rows_of, teach

from expunge import api
from expunge.benchmarks.records import UserRecords
from expunge.collate import Encoding
from expunge.heap import keep_freed_memory
from expunge.record import RunRecord, read_record
from expunge.records import read_records

METRICS = ("leak", "rouge_l_recall", "nll", "truth_ratio")
Rows = list[dict[str, str]]


def world(options: argparse.Namespace) -> dict[str, Rows]:
    """request-1 … request-n, retain and holdout."""
    total = options.requests * options.people
    rows = rows_of(options.data / "train/forget.jsonl", {"Task2": total})
    names = list(dict.fromkeys(row["person"] for row in rows))
    groups = {
        f"request-{number + 1}": names[number * options.people : (number + 1) * options.people]
        for number in range(options.requests)
    }
    sets = {name: [row for row in rows if row["person"] in people] for name, people in groups.items()}
    return sets | {
        "retain": rows_of(options.data / "train/retain.jsonl", {"Task2": options.kept}),
        "holdout": rows_of(options.data / "validation/forget.jsonl", {"Task2": options.kept}),
    }


def write(rows: Rows, path: Path) -> Path:
    """Rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def taught(sets: dict[str, Rows], options: argparse.Namespace) -> Path:
    """The model that knows everybody but the holdout; taught once."""
    rows = [row for name, found in sets.items() if name != "holdout" for row in found]
    data = write(rows, options.work / "data" / "all.jsonl")
    return teach([data], options.work / "taught", options, template="none")


def measure(model: Path, folder: Path, sets: dict[str, Rows], seed: int) -> dict[str, Any]:
    """All sets under one model: split -> metric -> value, low, high."""
    if not (folder / "record.json").exists():
        records = {name: read_records(rows, name=name) for name, rows in sets.items()}
        subject = UserRecords(records, Encoding("none"), swap_seed=0)
        api.evaluate(model, benchmark=subject, output=folder, overwrite=True, seed=seed)
    splits = read_record(folder).evaluations["before"].splits
    return {
        name: {
            metric: [round(v, 5) for v in (found[metric].value, found[metric].low, found[metric].high)]
            for metric in METRICS
            if metric in found
        }
        for name, found in splits.items()
    }


def serve(arm: str, number: int, last: Path, sets: dict[str, Rows], seed: int, options: Any) -> RunRecord:
    """One request on the model of the one before (`last`, a run folder; `taught` for the first)."""
    folder = options.work / f"{arm}-{seed}" / f"request-{number}"
    if not (ended(folder) and (folder / "model").is_dir()):
        later = [row for i in range(number + 1, options.requests + 1) for row in sets[f"request-{i}"]]
        data = options.work / "data"
        words = {
            "forget": write(sets[f"request-{number}"], data / f"request-{number}.jsonl"),
            "retain": write(sets["retain"] + later, data / f"retain-{number}.jsonl"),
            "holdout": write(sets["holdout"], data / "holdout.jsonl"),
            "method": options.method,
            "template": "none",
            "seed": seed,
            "evaluate": False,
            "output": folder,
            "overwrite": True,
            **given(options.settings),
        }
        if arm == "after" and number > 1:
            api.unlearn(after=last, **words)
        else:
            api.unlearn(last / "model", **words)
        go_on_if_ended(folder)
    return read_record(folder)


def series(arm: str, seed: int, sets: dict[str, Rows], options: Any) -> list[dict[str, Any]]:
    """One arm: every request, and what stands afterwards."""
    steps, last = [], options.work / "taught"
    for number in range(1, options.requests + 1):
        started = time.perf_counter()
        record = serve(arm, number, last, sets, seed, options)
        last = options.work / f"{arm}-{seed}" / f"request-{number}"
        assert record.stop is not None
        found = {
            "request": number,
            "stop": record.stop.reason,
            "steps": record.stop.step,
            "repairs": sum(step.repair for step in record.history),
            "train_seconds": record.timings.get("train"),
            "predecessor": record.after.record_sha256 if record.after else None,
            "splits": measure(last / "model", last.parent / f"measured-{number}", sets, seed),
            "seconds": round(time.perf_counter() - started, 1),
        }
        steps.append(found)
        leaks = {name: metrics["leak"][0] for name, metrics in found["splits"].items()}
        print(json.dumps({"arm": arm, "seed": seed, "request": number, "stop": found["stop"]} | leaks))
    return steps


def main() -> None:
    """Both arms on all seeds; write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--work", type=Path, default=Path("requests-work"))
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--people", type=int, default=5)
    parser.add_argument("--kept", type=int, default=20)
    parser.add_argument("--passes", type=int, default=12, help="over the data, when it is taught")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--method", default="ngdiff")
    parser.add_argument("--arms", default="after,alone")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--teach", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    keep_freed_memory()
    sets = world(options)
    start = measure(taught(sets, options), options.work / "measured-start", sets, 0)
    arms = {
        arm: {seed: series(arm, seed, sets, options) for seed in map(int, options.seeds.split(","))}
        for arm in options.arms.split(",")
    }
    settings = {
        key: str(value) for key, value in vars(options).items() if key not in ("work", "data", "output")
    }
    settings["model"] = Path(settings["model"]).name
    found = {
        "benchmark": "LUME Task 2, successive requests",
        "settings": settings,
        "rows": {name: len(rows) for name, rows in sets.items()},
        "environment": read_record(options.work / "taught").environment.model_dump(),
        "start": start,
        "arms": arms,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
