"""LUME Task 2 (synthetic personal records): learn 40 people, erase 20, keep 20, on several seeds.

    python benchmarks/lume_task2.py --data LUME_FOLDER --output RESULTS_FOLDER [--seeds 0,1,2]

`LUME_FOLDER` holds train/ and validation/ with forget.jsonl and retain.jsonl. The first 20 people of
each training fold are taken; all Task 2 rows of the validation folds are the holdout. A seed whose
result exists is skipped, so an interrupted study continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from expunge import api
from expunge.record import read_record


def task2(path: Path, people: int | None = None) -> list[dict[str, str]]:
    """Task 2 rows of a fold, of the first so many people; the person is the id without its suffix."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [
        {
            "prompt": row["input"],
            "response": row["output"],
            "person": row["id"][:36],
            "kind": row["id"][36:38],
        }
        for row in rows
        if row["task"] == "Task2"
    ]
    names = list(dict.fromkeys(row["person"] for row in rows))[:people]
    return [row for row in rows if row["person"] in names]


def prepare(data: Path, folder: Path, people: int) -> dict[str, Path]:
    """Write forget, retain and holdout as JSON Lines."""
    sets = {
        "forget": task2(data / "train" / "forget.jsonl", people),
        "retain": task2(data / "train" / "retain.jsonl", people),
        "holdout": task2(data / "validation" / "forget.jsonl") + task2(data / "validation" / "retain.jsonl"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in sets}


def study(paths: dict[str, Path], output: Path, seed: int, method: str, settings: dict[str, object]) -> None:
    """One seed: fine-tune once, then unlearn; both folders are kept."""
    taught, folder = output / f"taught-{seed}", output / f"{method}-{seed}"
    if not (taught / "record.json").exists():
        api.finetune(
            "smollm2-135m",
            data=[paths["forget"], paths["retain"]],
            output=taught,
            overwrite=True,
            seed=seed,
            template="none",
            evaluate=False,
        )
    if not (folder / "record.json").exists():
        api.unlearn(
            taught / "model",
            **paths,
            method=method,
            output=folder,
            resume=folder.exists(),
            seed=seed,
            template="none",
            **settings,
        )
    record = read_record(folder)
    print(
        json.dumps(
            {"seed": seed, "stop": record.stop.sentence if record.stop else None, "timings": record.timings}
        )
    )
    for stage, evaluation in record.evaluations.items():
        for split, metrics in evaluation.splits.items():
            shown = {k: [round(m.value, 3), round(m.low, 3), round(m.high, 3)] for k, m in metrics.items()}
            print(json.dumps({"stage": stage, "split": split} | shown), flush=True)


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--method", default="ngdiff")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.settings)}
    paths = prepare(options.data, options.output / "data", options.people)
    for seed in map(int, options.seeds.split(",")):
        study(paths, options.output, seed, options.method, settings)


if __name__ == "__main__":
    main()
