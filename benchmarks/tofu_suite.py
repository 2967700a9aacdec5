"""TOFU's suite with every set cut to some rows: seconds, rates, share of each stage, peak memory.

    python benchmarks/tofu_suite.py --data TOFU_FOLDER --output benchmarks/results/tofu_suite.json

By default the suite that a peer was measured with: forget10, 40 rows of every set, no attacks (no holdout),
up to 200 new tokens. `--attacks` adds holdout, moments and gradient norms. `--baseline` does the same work
metric by metric in the same process: batches of 32 rows in the order of the data, padded to the longest, all
logits, left-padded generation until the last row ends; it is timed after ours, on the same warm model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from expunge.benchmarks import tofu
from expunge.collate import IGNORED, collate
from expunge.environment import environment, peak_memory
from expunge.heap import keep_freed_memory
from expunge.models import load_model, load_tokenizer
from expunge.tables import Part, Tables, examine

BATCH = 32


def ours(benchmark: tofu.Tofu, model: Any, tokenizer: Any, precision: str) -> dict[str, Any]:
    """One pass of each kind over everything, then the metrics."""
    start = time.perf_counter()
    parts = benchmark.parts(tokenizer, None)
    encoded = time.perf_counter()
    tables = examine(model, tokenizer, parts, precision=precision)
    examined = time.perf_counter()
    measured = benchmark.measure(tables, None, seed=0)
    seconds = time.perf_counter() - start
    stages = {"encoding": encoded - start, "metrics": start + seconds - examined} | dict(tables.stages)
    return rates(tables, stages) | {
        "seconds": seconds,
        "model_utility": measured.splits["all"]["model_utility"].value,
        "share": {stage: found / seconds for stage, found in stages.items()},
        "rows": {name: len(part.rows) for name, part in parts.items()},
    }


def rates(tables: Tables, stages: Mapping[str, float]) -> dict[str, Any]:
    """Tokens, and tokens per second of their stage."""
    scoring, generation = stages.get("scoring", 0.0), stages.get("generation", 0.0)
    return {
        "stage_seconds": dict(stages),
        "scored_tokens": tables.scored_tokens,
        "generated_tokens": tables.generated_tokens,
        "scored_tokens_per_second": tables.scored_tokens / scoring if scoring else None,
        "generated_tokens_per_second": tables.generated_tokens / generation if generation else None,
    }


def baseline(benchmark: tofu.Tofu, model: Any, tokenizer: Any, precision: str) -> dict[str, Any]:
    """The same quantities metric by metric, as evaluation suites commonly do it."""
    parts = benchmark.parts(tokenizer, None)
    device = next(model.parameters()).device
    seconds: dict[str, float] = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for name, part in parts.items():
            asked = ["loss"] if name != "forget" else ["loss", "matches", "extraction"]
            asked += ["loss attack", "zlib", "min_k", "moments"] if part.moments else []
            for metric in asked:
                start = time.perf_counter()
                score_in_batches(model, part, tokenizer.pad_token_id or 0, device)
                seconds[f"{name}: {metric}"] = time.perf_counter() - start
            if part.new_tokens:
                start = time.perf_counter()
                generate_in_batches(model, part, tokenizer, device)
                seconds[f"{name}: generation"] = time.perf_counter() - start
            if part.gradients:
                start = time.perf_counter()
                gradients_one_by_one(model, part, device)
                seconds[f"{name}: gradient norms"] = time.perf_counter() - start
    return {"seconds": sum(seconds.values()), "metric_seconds": seconds}


def batches(part: Part, size: int = BATCH) -> list[list[Any]]:
    """Rows in the order of the data."""
    return [list(part.rows[i : i + size]) for i in range(0, len(part.rows), size)]


@torch.no_grad()
def score_in_batches(model: Any, part: Part, pad: int, device: torch.device) -> None:
    """Log-probabilities of all labels from all logits of padded batches."""
    for rows in batches(part):
        batch = {key: value.to(device) for key, value in collate(rows, pad).items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        table = logits.float().log_softmax(-1)
        table.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == IGNORED, 0).sum(
            1
        ).cpu()


@torch.no_grad()
def generate_in_batches(model: Any, part: Part, tokenizer: Any, device: torch.device) -> None:
    """Greedy answers of left-padded batches, until the last row ends."""
    for rows in batches(part):
        width = max(row.prompt_length for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, width - row.prompt_length :] = torch.tensor(row.input_ids[: row.prompt_length])
            mask[index, width - row.prompt_length :] = 1
        model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=part.new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )


def gradients_one_by_one(model: Any, part: Part, device: torch.device) -> None:
    """Norm of the gradient of each row's loss."""
    for rows in batches(part, 1):
        model.zero_grad()
        model(**{key: value.to(device) for key, value in collate(rows, 0).items()}).loss.backward()
        torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    model.zero_grad()


def main() -> None:
    """Time ours, and with `--baseline` the same work metric by metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--forget", default="forget10")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--baseline", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    model = load_model(options.model).to(options.device).eval()
    tokenizer = load_tokenizer(options.model)
    benchmark = tofu.load(
        options.data, forget=options.forget, rows=options.rows, new_tokens=options.new_tokens
    )
    if not options.attacks:
        benchmark = replace(benchmark, holdout=None)
    result: dict[str, Any] = {
        "settings": {
            key: str(value) for key, value in vars(options).items() if key not in ("output", "data")
        },
        "ours": ours(benchmark, model, tokenizer, options.precision) | {"peak_memory_bytes": peak_memory()},
        "threads": torch.get_num_threads(),
        "environment": environment().model_dump(),
    }
    if options.device.startswith("cuda"):
        result["ours"]["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    if options.baseline:
        result["baseline"] = baseline(benchmark, model, tokenizer, options.precision)
        result["times_faster"] = result["baseline"]["seconds"] / result["ours"]["seconds"]
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
