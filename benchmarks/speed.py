"""Time and memory of one optimizer step: NGDiff against fused gradient difference, and the matmul peak.

    python benchmarks/speed.py --data TOFU_FOLDER --output benchmarks/results/speed.json

Each measurement is a process of its own, the methods in turn (A B C A B C …), so that drift of a shared
machine touches all alike; a method may have settings behind pluses. Steps before `--warmup` are not counted.
`TOFU_FOLDER` holds forget01.jsonl and retain99.jsonl; 8 + 8 rows per step, chat template, as in what
it is compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from study import given

METHODS = ("grad-diff", "ngdiff-gen", "ngdiff", "ngdiff+sharpness=0")


def one(data: Path, method: str, steps: int, precision: str) -> dict[str, Any]:
    """Train for some steps; per-step numbers come from the run's own log."""
    import torch

    from expunge import Unlearner, UnlearningArguments, methods, read_records
    from expunge.environment import peak_memory
    from expunge.heap import keep_freed_memory
    from expunge.models import load_model, load_tokenizer

    keep_freed_memory()
    settings: dict[str, Any] = {"diagnose_every": 0, "check_every": 10**6, "save_strategy": "no"}
    method, *own = method.split("+")
    settings |= {"max_steps": steps} | given(own)
    args = UnlearningArguments(output_dir="unused", bf16=precision == "bf16", seed=0, **settings)
    run = Unlearner(
        load_model("smollm2-135m"),
        args,
        methods.METHODS[method](),
        load_tokenizer("smollm2-135m"),
        forget_dataset=read_records(data / "forget01.jsonl", name="forget"),
        retain_dataset=read_records(data / "retain99.jsonl", name="retain"),
    )
    run.monitor.check = None
    start = time.perf_counter()
    run.train()
    labels = sum(len(row.input_ids) - row.prompt_length for row in run.encoded["forget"]) / len(
        run.encoded["forget"]
    )
    return {
        "wall_seconds": time.perf_counter() - start,
        "seconds": [step.seconds for step in run.history],
        "tokens": [step.tokens for step in run.history],
        "repairs": sum(step.repair for step in run.history),
        "labels_per_forget_row": labels,
        "peak_memory_bytes": peak_memory(),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "embedding": run.model.get_output_embeddings().weight.numel(),
    }


def matmul_peak(precision: str, size: int = 2048, repeats: int = 8) -> float:
    """Best rate of a square product, FLOP/s."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def summarise(runs: list[dict[str, Any]], warmup: int) -> dict[str, float]:
    """Medians over counted steps of all rounds; rate over all counted tokens."""
    counted = [
        pair for run in runs for pair in list(zip(run["seconds"], run["tokens"], strict=True))[warmup:]
    ]
    seconds, tokens = zip(*counted, strict=True)
    body = runs[0]["parameters"] - runs[0]["embedding"]
    return {
        "seconds_per_step_median": statistics.median(seconds),
        "seconds_per_step_min": min(seconds),
        "seconds_per_step_max": max(seconds),
        "microseconds_per_token": 1e6 * sum(seconds) / sum(tokens),
        "tokens_per_second": sum(tokens) / sum(seconds),
        "body_flops_per_second": 6 * body * sum(tokens) / sum(seconds),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "steps_counted": len(seconds),
    }


def main() -> None:
    """All rounds, or (internally) one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.data, options.one, options.steps, options.precision)))
        return
    chosen = options.methods.split(",")
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in chosen}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(matmul_peak(options.precision))
        for method in chosen:
            words = [sys.executable, __file__, "--data", str(options.data), "--one", method]
            words += ["--steps", str(options.steps), "--precision", options.precision]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            runs[method].append(json.loads(done.stdout.splitlines()[-1]))
            print(method, summarise(runs[method][-1:], options.warmup), flush=True)
    from expunge.environment import environment

    result: dict[str, Any] = {
        "precision": options.precision,
        "matmul_peak_flops_per_second": max(peaks),
        "methods": {method: summarise(found, options.warmup) for method, found in runs.items()},
        "environment": environment().model_dump(),
    }
    for numbers in result["methods"].values():
        numbers["share_of_matmul_peak"] = numbers["body_flops_per_second"] / max(peaks)
    if "grad-diff" in chosen:
        base = result["methods"]["grad-diff"]["microseconds_per_token"]
        for numbers in result["methods"].values():
            numbers["time_per_token_over_grad_diff"] = numbers["microseconds_per_token"] / base
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
