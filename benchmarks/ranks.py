"""Step time and memory per rank: one process, two replicas (DDP), two shards (FSDP2), over gloo, here.

    python benchmarks/ranks.py --model smollm2-135m --output benchmarks/results/ranks.json
    python benchmarks/ranks.py --model ./tiny --rows 8

`--rows` are those of a whole step and data set: two ranks take half of them each. Memory is the largest
resident set of a rank, libraries and loading included, and, apart from that, what its tensors of the model,
of the optimizer and of the last good state take. Processes share the cores, with as many threads each as
there are cores to a process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plan_check import rows_of_one_length

WAYS = {"one process": 1, "two replicas": 2, "two shards": 2}


def held(run: Any) -> dict[str, int]:
    """Bytes that this rank keeps from step to step, by what they are."""
    from expunge.shards import shares

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    states = [value for state in run.optimizer.state.values() for value in state.values()]
    moments = [value for value in states if getattr(value, "numel", int)() > 1]
    return {
        "weights": size(shares(run.trained.parameters())),
        "optimizer state": size(shares(moments)),
        "last good state": size(
            run.monitor.good.tensors if run.monitor.good and run.monitor.good.tensors else []
        ),
    }


def one(options: argparse.Namespace) -> None:
    """One rank: a few steps; what it took goes to a file."""
    from expunge import Unlearner, UnlearningArguments, methods
    from expunge.environment import peak_memory
    from expunge.heap import keep_freed_memory
    from expunge.models import load_model, load_tokenizer

    keep_freed_memory()
    args = UnlearningArguments(
        output_dir=str(options.folder),
        use_cpu=True,
        bf16=options.precision == "bf16",
        template="none",
        max_steps=options.steps,
        save_strategy="no",
        check_every=0,
        per_device_train_batch_size=options.rows // WAYS[options.one],
        fsdp=options.one == "two shards",
    )
    rows = rows_of_one_length(options.words)
    run = Unlearner(
        load_model(options.model),
        args,
        methods.METHODS[options.method](),
        load_tokenizer(options.model),
        forget_dataset=rows[:32],
        retain_dataset=rows[32:],
    )
    run.train()
    later = run.history[1:]  # the first one warms up
    found = {
        "seconds_per_step_median": statistics.median(step.seconds for step in later),
        "peak_bytes": peak_memory(),
        "held_bytes": held(run),
        "losses": run.history[-1].losses,
    }
    rank = run.accelerator.process_index
    (options.folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def launch(way: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each rank found."""
    count = WAYS[way]
    words = [sys.executable, "-W", "ignore"]
    if count > 1:
        words += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    with tempfile.TemporaryDirectory() as folder:
        words += [__file__, "--one", way, "--folder", folder, "--model", options.model]
        for name in ("rows", "steps", "words", "method", "precision"):
            words += [f"--{name}", str(getattr(options, name))]
        threads = str(max(1, (os.cpu_count() or 1) // count))
        subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": threads})
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


def main() -> None:
    """Every way, or (internally) one rank of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="ngdiff")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--words", type=int, default=40, help="words in a prompt, and in a response")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=[*WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    from expunge.environment import environment

    found = {}
    for way in WAYS:
        found[way] = launch(way, options)
        print(way, json.dumps(found[way]), flush=True)
    if options.output:
        names = ("method", "rows", "steps", "words", "precision")
        settings = {name: getattr(options, name) for name in names} | {"model": Path(options.model).name}
        result = {"settings": settings, "ranks": found, "environment": environment().model_dump()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
