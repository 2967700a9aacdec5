"""Peak memory of short runs against what `expunge plan` says beforehand.

    python benchmarks/plan_check.py --model smollm2-135m --output benchmarks/results/plan.json
    python benchmarks/plan_check.py --config config.json --gpu h100 --rows 8 --output plan_gpu.json

Each setting is a process of its own. On a CPU its largest resident set is read (model loading and libraries
included), on a GPU `max_memory_allocated`. `--config` takes a configuration instead of a model: weights are
random, which memory does not depend on. All rows have the same length, so that plan and run mean the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "grad-diff": ("grad-diff", {}),
    "ngdiff": ("ngdiff", {}),
    "ngdiff, sharpness 0": ("ngdiff", {"sharpness": 0.0}),
    "ngdiff, buffers in bf16": ("ngdiff", {"gradient_buffers": "bf16"}),
    "ngdiff, checkpointing": ("ngdiff", {"gradient_checkpointing": True}),
    "ngdiff-gen": ("ngdiff-gen", {}),
    "kl-min": ("kl-min", {}),
    "ngdiff, LoRA": ("ngdiff", {"lora_rank": 16, "lora_merge": False}),
    "ngdiff, LoRA, bf16 base": ("ngdiff", {"lora_rank": 16, "lora_merge": False, "lora_bf16": True}),
    "ngdiff, LoRA, bf16 base, checkpointing": (
        "ngdiff",
        {"lora_rank": 16, "lora_merge": False, "lora_bf16": True, "gradient_checkpointing": True},
    ),
}
STEPS = 3


def letters() -> Any:
    """A tokenizer of single bytes, for a model without one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def material(options: argparse.Namespace) -> tuple[Any, Any]:
    """Tokenizer and configuration."""
    from transformers import AutoConfig

    from expunge.models import load_config, load_tokenizer

    if options.config is None:
        return load_tokenizer(options.model), load_config(options.model)
    return letters(), AutoConfig.from_pretrained(options.config)


def load(options: argparse.Namespace, config: Any, narrow: bool) -> Any:
    """The model, with random weights where only its configuration is given."""
    import torch
    from transformers import AutoModelForCausalLM

    from expunge.models import load_model

    dtype = torch.bfloat16 if narrow else torch.float32
    if options.config is None:
        return load_model(options.model, dtype=dtype)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)


def rows_of_one_length(count: int) -> list[dict[str, str]]:
    """64 rows, of so many words in prompt and response each."""
    words = (" one", " two", " six", " ten", " red", " big", " old", " new")
    return [
        {
            "prompt": "What" + words[i % 8] * count,
            "response": ("a" + words[i // 8 % 8] + words[i % 8]) + words[(i + 1) % 8] * count,
        }
        for i in range(64)
    ]


def one(options: argparse.Namespace) -> dict[str, Any]:
    """Plan a setting, run it for a few steps, and compare."""
    import torch

    from expunge import Unlearner, UnlearningArguments, methods, read_records
    from expunge.collate import Encoding
    from expunge.environment import peak_memory
    from expunge.hardware import DEVICES
    from expunge.heap import keep_freed_memory
    from expunge.plan import Request, plan

    keep_freed_memory()
    recipe, settings = SETTINGS[options.one]
    args = UnlearningArguments(
        output_dir=tempfile.mkdtemp(),
        bf16=True,
        template="none",
        max_steps=STEPS,
        save_strategy="no",
        check_every=0,
        per_device_train_batch_size=options.rows,
        **settings,
    )
    cuda = torch.cuda.is_available()
    method = methods.METHODS[recipe]()
    rows = rows_of_one_length(options.words)
    tokenizer, config = material(options)
    encoded = Encoding("none", None).rows(read_records(rows, name="forget"), tokenizer, name="forget")
    tokens = max(len(row.input_ids) for row in encoded)
    labels = max(len(row.input_ids) - row.prompt_length for row in encoded)
    device = DEVICES[options.gpu] if cuda else None
    planned = plan(Request(config, method, args, 1, device, tokens=tokens, labels=labels))
    model = load(options, config, bool(settings.get("lora_bf16")))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run = Unlearner(model, args, method, tokenizer, forget_dataset=rows[:32], retain_dataset=rows[32:])
    start = time.perf_counter()
    run.train()
    later = run.history[1:]  # the first one warms up
    measured = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    return {
        "planned_bytes": planned.peak,
        "measured_bytes": measured,
        "planned_over_measured": planned.peak / measured,
        "moment": planned.moment,
        "parts": planned.parts,
        "tokens_per_row": tokens,
        "labels_per_row": labels,
        "rows": options.rows,
        "planned_tokens_per_second": planned.tokens_per_second,
        "tokens_per_second": sum(s.tokens for s in later) / sum(s.seconds for s in later),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Every setting, or (internally) one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--gpu", default="h100", help="kind of GPU, where there is one")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--words", type=int, default=40, help="words in a prompt, and in a response")
    parser.add_argument("--only", help="settings, with semicolons between")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    found: dict[str, Any] = {}
    for name in options.only.split(";") if options.only else SETTINGS:
        words = [sys.executable, "-W", "ignore", __file__, "--one", name, "--model", options.model]
        words += ["--gpu", options.gpu, "--rows", str(options.rows), "--words", str(options.words)]
        words += ["--config", str(options.config)] if options.config else []
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            print(name, done.stderr[-1500:], flush=True)
            found[name] = {"failed": done.stderr.strip().splitlines()[-1][:300] if done.stderr else ""}
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        ratio = found[name]["planned_over_measured"]
        print(
            f"{name}: {found[name]['measured_bytes'] / 1e9:.2f} GB, plan / measured {ratio:.2f}", flush=True
        )
    from expunge.environment import environment

    if options.output:
        model = str(options.config or options.model)
        result = {"model": model, "settings": found, "environment": environment().model_dump()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
