"""Contrastive neighbours on LUME Tasks 2 and 3: what they change, near the forget records and in forgetting.

    python benchmarks/neighbours.py --data LUME_FOLDER --output benchmarks/results/neighbours.json
        [--model smollm2-135m] [--work FOLDER] [--tasks Task2,Task3] [--people 20] [--seeds 0,1,2] [--k 3]
        [--curriculum direct] [--method ngdiff] [--set max_steps=200] [--teach max_steps=300]

`LUME_FOLDER` holds train/ and validation/ with forget.jsonl and retain.jsonl. Per task the first people of
the training folds are taught once, and neighbours are sought. Then each seed unlearns without and with them,
on the same retain records: those that no probe is about. Measured are forget, those retain records, the
probes that are retained records as they stand (`neighbours`), the contrastive questions about these
(`contrast`), and, over all probes, how often the right answer is likelier than the one to forget
(`told_apart`). What exists in the work folder is skipped, so that an interrupted study continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from study import ended, given, go_on_if_ended, rows_of, teach
from successive_requests import METRICS, Rows, write

from expunge import api
from expunge.benchmarks.records import UserRecords
from expunge.collate import Encoding
from expunge.contrast import CONTRAST, Draft, margins
from expunge.heap import keep_freed_memory
from expunge.inference import model_context
from expunge.mining import Pair, Reader
from expunge.neighbours import CURRICULUM, PROBES, RECORD, RETAIN, NeighboursRecord, find_neighbours
from expunge.record import read_record
from expunge.records import read_records


def prepare(task: str, options: argparse.Namespace) -> dict[str, Path]:
    """Forget, retain and holdout of a task, as files."""
    folds = {"forget": "train/forget", "retain": "train/retain", "holdout": "validation/forget"}
    return {
        name: write(
            rows_of(options.data / f"{fold}.jsonl", {task: options.people}),
            options.work / task / "data" / f"{name}.jsonl",
        )
        for name, fold in folds.items()
    }


def rows_in(path: Path) -> Rows:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seek(task: str, model: Path, paths: dict[str, Path], options: argparse.Namespace) -> Path:
    """The folder of neighbours."""
    folder = options.work / task / "neighbours"
    if not (folder / RECORD).exists():
        sets = {"forget": paths["forget"], "retain": paths["retain"]}
        words: dict[str, Any] = {"k": options.k, "margin": options.margin, "template": "none"}
        words |= {"curriculum": tuple(options.curriculum.split(",")), "overwrite": True}
        find_neighbours(model, output_folder=folder, **sets, **words)
    found = NeighboursRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    if (before := found.settings.get("curriculum")) != options.curriculum.split(","):
        raise SystemExit(f"{folder} has --curriculum {before}. Take another --work for another one.")
    return folder


def measure(model: Path, folder: Path, paths: dict[str, Path], near: Path, seed: int) -> dict[str, Any]:
    """All sets under one model, and the share of probes that it tells apart."""
    result = folder / "result.json"
    if not result.exists():
        probes = rows_in(near / PROBES)
        sets = {
            "forget": rows_in(paths["forget"]),
            "retain": rows_in(near / RETAIN),
            "holdout": rows_in(paths["holdout"]),
            "neighbours": [row for row in probes if row["template"] == "direct"],
            "contrast": [row for row in probes if row["template"] != "direct"],
        }
        records = {name: read_records(rows, name=name) for name, rows in sets.items() if rows}
        subject = UserRecords(records, Encoding("none"), swap_seed=0)
        done = api.evaluate(model, benchmark=subject, output=folder, overwrite=True, seed=seed)
        found = {
            name: {
                key: [round(v, 5) for v in (value.value, value.low, value.high)]
                for key, value in metrics.items()
                if key in METRICS
            }
            for name, metrics in done.record.evaluations["before"].splits.items()
        }
        reader = Reader(done.model, done.tokenizer, Encoding("none", model_context(done.model)))
        drafts = [
            Draft(row["prompt"], row["response"], row[CONTRAST], row["template"], Pair(0, 0, 0, 0, 0))
            for row in probes
        ]
        apart = [value > 0 for value in margins(drafts, reader)]
        found["told_apart"] = {"share": round(sum(apart) / len(apart), 5), "n": len(apart)}
        result.write_text(json.dumps(found), encoding="utf-8")
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return measured


def unlearn(
    task: str, arm: str, seed: int, model: Path, paths: dict[str, Path], options: argparse.Namespace
) -> dict[str, Any]:
    """One seed of one arm."""
    near = options.work / task / "neighbours"
    folder = options.work / task / f"{arm}-{seed}"
    if not (ended(folder) and (folder / "model").is_dir()):
        api.unlearn(
            model,
            forget=paths["forget"],
            retain=near / RETAIN,
            holdout=paths["holdout"],
            method=options.method,
            neighbours=near if arm == "with" else None,
            template="none",
            seed=seed,
            evaluate=False,
            output=folder,
            overwrite=True,
            **given(options.settings),
        )
        go_on_if_ended(folder)
    record = read_record(folder)
    assert record.stop is not None
    return {
        "stop": record.stop.reason,
        "steps": record.stop.step,
        "repairs": sum(step.repair for step in record.history),
        "train_seconds": record.timings.get("train"),
        "after": measure(folder / "model", folder.with_name(f"{folder.name}-measured"), paths, near, seed),
    }


def study(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """One task: what was found, the start, and both arms on all seeds."""
    paths = prepare(task, options)
    known = [paths["forget"], paths["retain"]]
    model = teach(known, options.work / task / "taught", options, template="none")
    near = seek(task, model, paths, options)
    found = NeighboursRecord.model_validate_json((near / RECORD).read_text(encoding="utf-8"))
    counts = ("pairs", "without", "drafted", "kept", "curriculum", "probes", "seconds")
    arms: dict[str, dict[int, Any]] = {"without": {}, "with": {}}
    for seed in map(int, options.seeds.split(",")):
        for arm, done in arms.items():
            done[seed] = unlearn(task, arm, seed, model, paths, options)
            line = {"task": task, "arm": arm, "seed": seed, "stop": done[seed]["stop"]}
            print(json.dumps(line | {"after": done[seed]["after"]}), flush=True)
    return {
        "found": {name: getattr(found, name) for name in counts},
        "rows": {name: len(rows_in(path)) for name, path in paths.items()}
        | {"curriculum": len(rows_in(near / CURRICULUM))},
        "before": measure(model, options.work / task / "taught-measured", paths, near, 0),
        "arms": arms,
        "environment": read_record(options.work / task / "taught").environment.model_dump(),
    }


def main() -> None:
    """All tasks; write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--work", type=Path, default=Path("neighbours-work"))
    parser.add_argument("--tasks", default="Task2,Task3")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--passes", type=int, default=12, help="over the data, when it is taught")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--margin", type=float, default=0.2)
    parser.add_argument("--curriculum", default="direct", help="kinds of question that are trained on")
    parser.add_argument("--method", default="ngdiff")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--teach", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    keep_freed_memory()
    tasks = {task: study(task, options) for task in options.tasks.split(",")}
    settings = {
        key: str(value) for key, value in vars(options).items() if key not in ("work", "data", "output")
    }
    settings["model"] = Path(settings["model"]).name
    found = {"benchmark": "LUME, contrastive neighbours", "settings": settings, "tasks": tasks}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
