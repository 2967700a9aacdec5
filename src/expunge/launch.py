"""Ways of training that the engine does not have: refused with the reason, whoever asks for them.

Settings ask, and so do the flags of a launcher (`accelerate launch`, through its environment), which the
Trainer follows without a word. Looked at before any of them takes effect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

_HOOK = (
    "logits are picked by a hook that is another one in every forward pass, and a compiled model does not "
    "look for new hooks"
)


def check_launch(args: TrainingArguments, launcher: Mapping[str, str] = os.environ) -> None:
    """Refuse DeepSpeed, a compiled model, sequences split over processes, and other precisions.

    Args:
        args: As they were given, before the Trainer's own checks act on them.
        launcher: Environment variables.

    Raises:
        ValueError: One of these is asked for.
    """
    if args.deepspeed or _on(launcher, "ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "`deepspeed` must be left out: its engine reduces, partitions and applies gradients inside the "
            "backward pass, before objectives are combined and looked at. Use FSDP2, which shards as much "
            "(fsdp=true; docs/cluster.md)."
        )
    if args.torch_compile or args.torch_compile_backend or args.torch_compile_mode:
        raise ValueError(f"`torch_compile` must be left out: {_HOOK}. Leave out its backend and mode, too.")
    backend = launcher.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise ValueError(
            f"The launcher's dynamo_backend must be no: {_HOOK}; got {backend}. Launch without it "
            "(ACCELERATE_DYNAMO_BACKEND)."
        )
    _check_sequences(args.parallelism_config, launcher)
    _check_precision(args, launcher)


def _check_sequences(asked: Any, launcher: Mapping[str, str]) -> None:
    """The Trainer splits sequences inside the step that is replaced here."""
    names = ("cp_size", "sp_size")
    sizes = {name: int(getattr(asked, name, 1)) for name in names}
    if asked is None and _on(launcher, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        sizes = {name: int(launcher.get(f"PARALLELISM_CONFIG_{name.upper()}", "1")) for name in names}
    if max(sizes.values()) > 1:
        raise ValueError(
            "`parallelism_config` must leave sequences whole (logits are picked where those have labels); "
            f"got cp_size={sizes['cp_size']}, sp_size={sizes['sp_size']}. Long rows fit by fsdp=true with "
            "activation checkpointing, a smaller per_device_train_batch_size, or max_length."
        )


def _check_precision(args: TrainingArguments, launcher: Mapping[str, str]) -> None:
    """Losses are scaled in fp16 and rounded in fp8, which distorts gradient norms; bf16 is a setting."""
    asked = launcher.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked in ("fp16", "fp8"):
        raise ValueError(
            "The launcher's mixed_precision must be bf16 or no (anything else distorts gradient norms); got "
            f"{asked}. Launch with no and set bf16=true."
        )
    if asked == "bf16" and not args.bf16:
        raise ValueError(
            "The launcher's mixed_precision must be that of the settings; got bf16 beside bf16=false. Launch "
            "with no, or set bf16=true."
        )


def _on(launcher: Mapping[str, str], name: str) -> bool:
    return launcher.get(name, "false").lower() in ("true", "1", "yes")
