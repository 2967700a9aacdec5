"""`refresh_every`: speed and error of weights that are carried over several optimizer steps.

    python benchmarks/refresh.py --data TOFU_FOLDER --output benchmarks/results/refresh.json
    python benchmarks/refresh.py --data TOFU_FOLDER --model ./tiny --steps 40 --every 1,2,4,8,16

The first takes under 12 minutes on two idle cores with bf16 (four runs of 21 steps, some 4 s each).
For every k, one process: NGDiff as published, η fixed. Speed: real tokens per second of the steps after
the first two. Error: the cosine of the direction under carried weights with that under the weights of the
step, from the gradients of the same step, at every refresh (`carried_cosine` of the log: there the weights
are k steps old, the oldest they get), and the relative distance of the parameters to those of k = 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def one(options: argparse.Namespace, every: int) -> dict[str, Any]:
    """Train with weights refreshed every so many steps; parameters go to a file."""
    import torch
    from torch.nn.utils import parameters_to_vector

    from expunge import Unlearner, UnlearningArguments, methods, read_records
    from expunge.heap import keep_freed_memory
    from expunge.methods import Method
    from expunge.models import load_model, load_tokenizer

    keep_freed_memory()
    published = methods.METHODS["ngdiff-gen"]()
    args = UnlearningArguments(
        output_dir=tempfile.mkdtemp(),
        bf16=options.precision == "bf16",
        max_steps=options.steps,
        per_device_train_batch_size=options.rows,
        refresh_every=every,
        learning_rate=options.learning_rate,
        check_every=0,
        save_strategy="no",
        seed=0,
    )
    run = Unlearner(
        load_model(options.model),
        args,
        Method("ngdiff-fixed", published.objectives, published.weighting),
        load_tokenizer(options.model),
        forget_dataset=read_records(options.data / "forget01.jsonl", name="forget"),
        retain_dataset=read_records(options.data / "retain99.jsonl", name="retain"),
    )
    run.train()
    torch.save(parameters_to_vector(run.trained.parameters()).detach(), options.folder / f"{every}.pt")
    counted = run.history[2:]
    cosines = [step.carried_cosine for step in run.history if step.carried_cosine is not None]
    return {
        "tokens_per_second": sum(s.tokens for s in counted) / sum(s.seconds for s in counted),
        "seconds_per_step_median": statistics.median(s.seconds for s in counted),
        "cosine_lowest": min(cosines, default=None),
        "cosine_median": statistics.median(cosines) if cosines else None,
        "refreshes_compared": len(cosines),
        "forget_nll": -run.history[-1].losses["-nll(forget)"],
        "retain_nll": run.history[-1].losses["nll(retain)"],
    }


def main() -> None:
    """Every k, or (internally) one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--every", default="1,2,5,10")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options, options.one)))
        return
    import torch

    from expunge.environment import environment

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for every in options.every.split(","):
            words = [sys.executable, "-W", "ignore", *sys.argv, "--folder", folder, "--one", every]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found[every] = json.loads(done.stdout.splitlines()[-1])
            plain, ours = (torch.load(Path(folder) / f"{k}.pt") for k in (options.every.split(",")[0], every))
            found[every]["parameters_apart"] = float((ours - plain).norm() / plain.norm())
            print(every, found[every], flush=True)
    if options.output:
        settings = {key: str(value) for key, value in vars(options).items() if key not in ("output", "data")}
        result = {"settings": settings, "every": found, "environment": environment().model_dump()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
