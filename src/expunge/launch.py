"""Ways of training that the engine does not have: refused with the reason, whoever asks for them.

Settings ask, and so do the flags and the environment of a launcher (`accelerate launch`), which the Trainer
follows without a word. What they came to is known when there is an accelerator: before any step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainingArguments

_HOOK = (
    "logits are picked by a hook that is another one in every forward pass, and a compiled model does not "
    "look for new hooks"
)


def check_settings(args: TrainingArguments) -> None:
    """Refuse what settings ask for, before an accelerator is made of them.

    Raises:
        ValueError: DeepSpeed, sequences split over processes, or a compiled model.
    """
    if zero_stage(args) is not None:
        raise ValueError(
            f"`deepspeed` must be left out (ZeRO stage {zero_stage(args)}): its engine reduces, partitions "
            "and applies gradients inside the backward pass, before objectives are combined and looked at. "
            "Use FSDP2, which shards as much (fsdp=true; docs/cluster.md)."
        )
    _check_sequences(args.parallelism_config)
    if args.torch_compile:
        raise ValueError(f"`torch_compile` must be False: {_HOOK}; got True. Leave it out.")


def check_launch(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Refuse what only the launcher asked for.

    Raises:
        ValueError: A compiled model, sequences split over processes, fp16, or another precision than that of
            the settings.
    """
    backend = accelerator.state.dynamo_plugin.backend.value
    if backend != "NO":
        raise ValueError(
            f"The launcher's dynamo_backend must be no: {_HOOK}; got {backend.lower()}. "
            "Leave --dynamo_backend (ACCELERATE_DYNAMO_BACKEND) out."
        )
    _check_sequences(accelerator.parallelism_config)
    precision, own = accelerator.mixed_precision, "bf16" if args.bf16 else "no"
    if precision == own:
        return
    if precision == "bf16":
        rule, fix = "must be that of the settings (bf16=false)", "Set bf16=true, or launch with no."
    else:
        rule, fix = "must be bf16 or no (loss scaling and 8 bits distort gradient norms)", "Launch with bf16."
    raise ValueError(
        f"The launcher's mixed_precision (ACCELERATE_MIXED_PRECISION) {rule}; got {precision}. {fix}"
    )


def zero_stage(args: TrainingArguments) -> int | None:
    """Stage of DeepSpeed's ZeRO under which a run would train; None without DeepSpeed."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return int(plugin.zero_stage)
    given = args.deepspeed
    if not given:
        return None
    settings = given if isinstance(given, dict) else json.loads(Path(given).read_text(encoding="utf-8"))
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def _check_sequences(asked: Any) -> None:
    """The Trainer splits sequences inside the step that is replaced here."""
    if asked is not None and (asked.cp_size > 1 or asked.sp_size > 1):
        raise ValueError(
            "`parallelism_config` must leave sequences whole (logits are picked where those have labels); "
            f"got cp_size={asked.cp_size}, sp_size={asked.sp_size}. Long rows fit by fsdp=true with "
            "activation checkpointing, a smaller per_device_train_batch_size, or max_length."
        )
