"""Fully sharded training as it was asked for: whether a run is sharded, and on CPUs too.

accelerate shards on GPUs and their like; where it finds CPUs only it replicates the model without a word.
Here it shards there as well (gloo): large hosts without a GPU, and tests of what runs on a cluster.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainingArguments


def fsdp_wanted(args: TrainingArguments) -> bool:
    """Whether settings or the launcher ask for FSDP, and there are several processes to shard over."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return (bool(args.fsdp) or launched) and args.world_size > 1


def shard_on_cpu(accelerator: Accelerator, args: TrainingArguments) -> bool:
    """Make an accelerator shard over CPU processes, where FSDP is wanted; returns whether it does.

    Raises:
        ValueError: FSDP1 is asked for; its sharded parameters cannot be held apart per objective.
    """
    if not fsdp_wanted(args):
        return False
    state: Any = accelerator.state
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(getattr(args, "fsdp_plugin_args", None) or {}))
        if isinstance(state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):  # nothing to pin memory for
            state.fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)
        state.distributed_type = DistributedType.FSDP
        PartialState().distributed_type = DistributedType.FSDP  # every AcceleratorState() takes over from it
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(
            f"`fsdp_config` must ask for version 2 (fully_shard); got {plugin.fsdp_version}. "
            'Set fsdp_config={"version": 2}, or fsdp_version: 2 in the file of `accelerate launch`.'
        )
    return plugin is not None
