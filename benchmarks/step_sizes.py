"""How far to go: the default's fixed rate against rules that measure it, on LUME people and on TOFU authors.

    python benchmarks/step_sizes.py --world tofu --data TOFU_FOLDER --work WORK_FOLDER
        --output benchmarks/results/step_sizes.json [--rules schedule,within-budget,gen] [--seeds 0]
        [--set max_steps=100] [--threads 1]

Direction, forget loss and retain budget are those of `ngdiff`, without its sharpness; only its step size
changes. `lume`: questions and biographies of 10 + 10 people of Task 2. `tofu`: the 60 shortest rows of
forget05, the 160 shortest of the first 1,200 of retain95; the 40 shortest of the rows 2,000 to 2,399, which
nobody was taught, are the holdout.
The embedded model is taught once per world, in a work folder that no other benchmark wrote its rows to. What
stands in the output already is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import lume_task2
import tofu_short
import torch
from study import given

from expunge import METHODS, api
from expunge.environment import environment
from expunge.heap import keep_freed_memory
from expunge.record import read_record, write_atomically
from expunge.step_sizes import STEP_SIZES
from expunge.stopping import RetainBudget

LOOSE = 0.05
"""GeN's retain budget: it looks for the lowest retain loss and cannot respect a tight one."""
SIZES: dict[str, dict[str, int]] = {
    "lume": {"teach": 90, "teach_rows": 16, "rows": 8},
    "tofu": {"teach": 165, "teach_rows": 8, "rows": 4},
}
SHOWN = ("leak", "probability", "nll", "rouge_l_recall", "membership_loss_auc")


def tofu(data: Path, folder: Path) -> dict[str, Path]:
    """Short rows of authors to forget, to keep, and never taught."""
    paths = tofu_short.prepare(data, folder)
    return {"forget": paths["forget"], "retain": paths["retain"], "holdout": paths["unseen"]}


def trial(
    rule: str, seed: int, model: Path, paths: dict[str, Path], options: argparse.Namespace
) -> dict[str, Any]:
    """One run under a rule, and what is known after it."""
    method = METHODS["ngdiff"]()
    made = STEP_SIZES[rule]
    budget = RetainBudget(tolerance=LOOSE) if rule == "gen" else method.budget
    method = dataclasses.replace(method, step_size=made() if made else None, budget=budget)
    folder = options.work / options.world / f"{rule}-{seed}"
    settings = {"max_steps": 100, "check_every": 10, "sharpness": 0.0} | given(options.settings)
    api.unlearn(
        model,
        **paths,
        method=method,
        output=folder,
        overwrite=True,
        seed=seed,
        template="none",
        save_strategy="no",
        evaluate=False,
        per_device_train_batch_size=SIZES[options.world]["rows"],
        **settings,
    )
    record = read_record(folder)
    assert record.stop is not None
    api.evaluate(folder / "model", **paths, output=folder / "after", overwrite=True, template="none")
    after = read_record(folder / "after").evaluations["before"]
    shutil.rmtree(folder / "model")
    return {
        "world": options.world,
        "rule": rule,
        "seed": seed,
        "stop": record.stop.reason,
        "steps": record.stop.step,
        "repairs": sum(step.repair for step in record.history),
        "rates": [float(f"{step.learning_rate:.3g}") for step in record.history[::10]],
        "checks": [
            (check.step, round(check.forget_nll, 3), round(check.control_nll, 3)) for check in record.checks
        ],
        "after": {
            split: {name: round(metric.value, 3) for name, metric in metrics.items() if name in SHOWN}
            for split, metrics in after.splits.items()
        },
    }


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=list(SIZES), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step_sizes.json"))
    parser.add_argument("--rules", default="schedule,within-budget,gen")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    place = options.work / options.world
    paths = (
        tofu(options.data, place / "data")
        if options.world == "tofu"
        else lume_task2.prepare(options.data, place / "data", 10)
    )
    size = SIZES[options.world]
    model = lume_task2.teach(paths, place, size["teach_rows"], size["teach"])
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    results |= {"environment": environment().model_dump(mode="json")}
    known = {(found["world"], found["rule"], found["seed"]) for found in results.setdefault("trials", [])}
    for seed in map(int, options.seeds.split(",")):
        for rule in options.rules.split(","):
            if (options.world, rule, seed) not in known:
                results["trials"].append(trial(rule, seed, model, paths, options))
                write_atomically(options.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
