"""One scored pass and one generation pass over LUME's validation fold, against one row at a time.

    python benchmarks/scoring.py --data LUME_FOLDER --output benchmarks/results/scoring.json

`LUME_FOLDER` holds validation/forget.jsonl and validation/retain.jsonl. Both ways ask the same of the same
model in the same process: the log-probability of every response token, and 256 greedy tokens after the raw
prompt. `--rows` takes every so-maniest row, by length, so that the sample is like the fold. The naive way
stops after `--naive-seconds`; its time for all rows is then estimated from its own rate, and said to be.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from expunge.collate import Encoded, encode
from expunge.environment import environment, peak_memory
from expunge.heap import keep_freed_memory
from expunge.models import load_model, load_tokenizer
from expunge.records import read_records
from expunge.tables import Part, Tables, examine


def rows_of(data: Path, tokenizer: Any, count: int | None) -> list[Encoded]:
    files = [data / "validation" / f"{split}.jsonl" for split in ("forget", "retain")]
    encoded = [
        row
        for file in files
        for row in encode(read_records(file, name=file.stem), tokenizer, template="none")
    ]
    encoded.sort(key=lambda row: len(row.input_ids))
    count = min(count or len(encoded), len(encoded))
    return [encoded[i * len(encoded) // count] for i in range(count)]


def batched(model: Any, tokenizer: Any, rows: Sequence[Encoded], args: argparse.Namespace) -> Tables:
    part = Part(rows, new_tokens=args.new_tokens)
    return examine(model, tokenizer, {"fold": part}, precision=args.precision, batch_tokens=args.batch_tokens)


def naive(
    model: Any, tokenizer: Any, rows: Sequence[Encoded], args: argparse.Namespace
) -> dict[str, list[Any]]:
    """Straight from the definition: for every row a forward pass and a call of `generate`."""
    device = next(model.parameters()).device
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=args.new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    found: dict[str, list[Any]] = {"log_probs": [], "matches": [], "tokens": [], "seconds": []}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    started = time.perf_counter()
    for row in rows:
        begun = time.perf_counter()
        if begun - started > args.naive_seconds:
            break
        ids = torch.tensor([row.input_ids], device=device)
        with torch.no_grad(), autocast:
            logits = model(input_ids=ids).logits[0, row.prompt_length - 1 : -1].float()
            own = logits.log_softmax(-1).gather(1, ids[0, row.prompt_length :, None])[:, 0]
            prompt = ids[:, : row.prompt_length]
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)
        found["log_probs"].append(own.tolist())
        found["matches"].append((logits.argmax(-1) == ids[0, row.prompt_length :]).tolist())
        found["tokens"].append(out[0, row.prompt_length :].tolist())
        found["seconds"].append(time.perf_counter() - begun)
    return found


def changed_argmax(batched: Sequence[Sequence[bool]], single: Sequence[Sequence[bool]]) -> int:
    """Labels that are the likeliest token in one of the two ways only, over the rows that both did."""
    pairs = (zip(many, few, strict=True) for many, few in zip(batched, single, strict=False))
    return sum(bool(a) != bool(b) for row in pairs for a, b in row)


def compared(rows: Sequence[Encoded], tables: Tables, one: dict[str, list[Any]]) -> dict[str, Any]:
    """Agreement over the rows that both did; in bf16, padding now and then moves an argmax."""
    table, order = tables["fold"], range(len(one["tokens"]))
    return {
        "rows": len(order),
        "labels": sum(map(len, one["matches"])),
        "changed_argmax": changed_argmax([score.matches for score in table.scores], one["matches"]),
        "other_text": sum(list(table.generations[i].tokens) != one["tokens"][i] for i in order),
        "largest_log_prob_difference": max(
            (
                abs(a - b)
                for i in order
                for a, b in zip(table.scores[i].log_probs, one["log_probs"][i], strict=True)
            ),
            default=0.0,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, help="default: the whole fold")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--naive-seconds", type=float, default=1e9)
    args = parser.parse_args()

    keep_freed_memory()
    model, tokenizer = load_model(args.model).eval(), load_tokenizer(args.model)
    if torch.cuda.is_available():
        model.to("cuda")
    rows = rows_of(args.data, tokenizer, args.rows)
    spread = [rows[i] for i in sorted(range(len(rows)), key=lambda i: (i * 0.6180339887) % 1)]
    batched(model, tokenizer, spread[:2], args)  # the first pass pays for what libraries load
    tables = batched(model, tokenizer, spread, args)
    one = naive(model, tokenizer, spread, args)
    seconds, done = sum(one["seconds"]), len(one["seconds"])
    estimate = seconds * len(spread) / max(done, 1)
    result = {
        "benchmark": "scoring",
        "model": args.model,
        "rows": len(rows),
        "new_tokens": args.new_tokens,
        "precision": args.precision,
        "batch_tokens": args.batch_tokens,
        "threads": torch.get_num_threads(),
        "environment": environment().model_dump(),
        "ours": {
            "seconds": tables.seconds,
            "stages": dict(tables.stages),
            "scored_tokens": tables.scored_tokens,
            "scored_tokens_per_second": tables.scored_tokens / tables.stages["scoring"],
            "generated_tokens": tables.generated_tokens,
            "generated_tokens_per_second": tables.generated_tokens / tables.stages["generation"],
        },
        "naive": {
            "rows": done,
            "seconds": seconds,
            "seconds_for_all_rows": estimate,
            "estimated": done < len(rows),
        },
        "ratio": estimate / tables.seconds,
        "agreement": compared(spread, tables, one),
        "peak_memory_bytes": peak_memory(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
