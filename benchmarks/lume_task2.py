"""LUME Task 2 (synthetic personal records): learn 40 people, erase 20, keep 20, on several seeds.

    python benchmarks/lume_task2.py --data LUME_FOLDER --output RESULTS_FOLDER [--seeds 0,1,2]

`LUME_FOLDER` holds train/ and validation/ with forget.jsonl and retain.jsonl. The first 20 people of
each training fold are taken, and as many of the validation fold as the holdout. The model is taught once;
the seeds are those of unlearning. What exists already is skipped, so that an interrupted study continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from expunge import api
from expunge.heap import keep_freed_memory
from expunge.record import RunRecord, read_record


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
    """Write forget, retain and holdout as JSON Lines, and the question rows of each beside them.

    What is there already must be the same.
    """
    sets = {
        "forget": task2(data / "train" / "forget.jsonl", people),
        "retain": task2(data / "train" / "retain.jsonl", people),
        "holdout": task2(data / "validation" / "forget.jsonl", people),
    }
    for name, rows in sets.items():
        questions = [row for row in rows if row["kind"] == "qa"]
        for target, found in ((name, rows), (f"{name}-questions", questions)):
            text = "".join(json.dumps(row) + "\n" for row in found)
            write(folder / f"{target}.jsonl", text)
    return {name: folder / f"{name}.jsonl" for name in sets}


def write(path: Path, text: str) -> None:
    """Write rows; what is there already must be the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{path} holds other rows. Take another folder for another size.")
    path.write_text(text, encoding="utf-8")


def teach(paths: dict[str, Path], output: Path, rows: int = 16, steps: int = 150) -> Path:
    """The model that knows forget and retain; taught once, since it is not what is compared."""
    taught = output / "taught"
    if not (taught / "model").is_dir():
        api.finetune(
            "smollm2-135m",
            data=[paths["forget"], paths["retain"]],
            output=taught,
            overwrite=True,
            template="none",
            evaluate=False,
            seed=0,
            learning_rate=1e-3,
            warmup_steps=5,
            per_device_train_batch_size=rows,
            max_steps=steps,
            save_strategy="no",
        )
    return taught / "model"


def study(paths: dict[str, Path], output: Path, seed: int, method: str, settings: dict[str, object]) -> None:
    """One seed of unlearning, then the question rows of before and after."""
    model, folder = teach(paths, output), output / f"{method}-{seed}"
    if not (folder / "record.json").exists():
        options = {"output": folder, "resume": folder.exists(), "seed": seed, "template": "none"}
        api.unlearn(model, **paths, method=method, **options, **settings)
    show(seed, read_record(folder))
    questions = {name: path.with_name(f"{name}-questions.jsonl") for name, path in paths.items()}
    original = model if seed == 0 else None
    check = folder / "questions"
    if not (check / "record.json").exists():
        api.evaluate(
            folder / "model", original=original, **questions, output=check, overwrite=True, template="none"
        )
    show(seed, read_record(check))


def show(seed: int, record: RunRecord) -> None:
    """One line per stage and split, in JSON."""
    stop = record.stop.model_dump() if record.stop else None
    repairs = sum(step.repair for step in record.history)
    print(json.dumps({"seed": seed, "stop": stop, "repairs": repairs, "timings": record.timings}))
    for stage, evaluation in record.evaluations.items():
        for split, metrics in evaluation.splits.items():
            shown = {k: [round(m.value, 3), round(m.low, 3), round(m.high, 3)] for k, m in metrics.items()}
            print(json.dumps({"seed": seed, "stage": stage, "split": split} | shown), flush=True)


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
    keep_freed_memory()
    paths = prepare(options.data, options.output / "data", options.people)
    for seed in map(int, options.seeds.split(",")):
        study(paths, options.output, seed, options.method, settings)


if __name__ == "__main__":
    main()
