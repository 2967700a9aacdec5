"""Several processes share independent work: each does its part, all get the whole.

Where torch.distributed is not initialised, every process does everything; so it does where the model's own
forward pass takes all processes (FSDP, ZeRO-3, tensor parallel), unless work is divided `even`ly: then every
process runs as many forward passes, and some repeat a batch at the end whose result is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

Item = TypeVar("Item")


def sharers(model: nn.Module, *, even: bool = False) -> int:
    """Processes that divide independent work on this model between them; 1 if it cannot be divided."""
    if not (dist.is_available() and dist.is_initialized()) or (sharded(model) and not even):
        return 1
    return dist.get_world_size()


def portion(budget: int, total: int, model: nn.Module, *, even: bool = False) -> int:
    """A batch's budget, cut so that there is a batch for every process."""
    count = sharers(model, even=even)
    return budget if count == 1 else max(1, min(budget, total // count))


def own(batches: Sequence[Item], model: nn.Module, *, even: bool = False) -> Sequence[Item]:
    """This process's part: every so-maniest batch, so that neighbours of like size are spread."""
    count = sharers(model, even=even)
    if count > 1 and sharded(model):
        batches = [*batches, *[batches[-1]] * (-len(batches) % count)]
    return batches if count == 1 else batches[dist.get_rank() :: count]


def together(found: Mapping[int, Item], model: nn.Module, *, even: bool = False) -> dict[int, Item]:
    """Row -> result of all processes, from each one's own; all of them must call this."""
    count = sharers(model, even=even)
    if count == 1:
        return dict(found)
    parts: list[Mapping[int, Item]] = [{}] * count
    dist.all_gather_object(parts, found)
    return {row: result for part in parts for row, result in part.items()}


def decided(make: Callable[[], Item]) -> Item:
    """What the first process makes, on every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return make()
    box = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def wait() -> None:
    """Until every process is here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def first() -> bool:
    """Whether this is the process that writes files."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def own_file(name: str) -> str:
    """A file name of this process's own: `a.b` becomes `a.3.b` on the fourth."""
    stem, dot, end = name.rpartition(".")
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return f"{stem}.{rank}{dot}{end}"


def sharded(model: nn.Module) -> bool:
    """Whether one forward pass of the model takes all processes."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return True
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
