"""The processes that train one model together: what they tell each other, and when they reduce gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from expunge.gramian import Keep


@dataclass(frozen=True)
class Peers:
    """All processes of a launch; each method must be called by all of them.

    Args:
        accelerator: Connects them.
        device: Of this process.
    """

    accelerator: Accelerator
    device: torch.device

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes of a small tensor, on the CPU where there are several."""
        if self.accelerator.num_processes == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values.to(self.device), reduction="mean")
        return reduced.cpu()

    def agree(self, value: Any) -> Any:
        """The first process's value, on every one."""
        return broadcast_object_list([value])[0] if self.accelerator.num_processes > 1 else value

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised anywhere."""
        return any(gather_object([flag]))

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all, [r]; processes may hold different numbers of them."""
        if self.accelerator.num_processes == 1:
            return rows
        return torch.tensor(gather_object(rows.tolist()), dtype=rows.dtype)

    def join(self, items: list[Any]) -> list[Any]:
        """Lists of all, one after the other."""
        joined: list[Any] = gather_object(items)
        return joined


def reduce_every_pass(model: nn.Module, keep: Keep) -> None:
    """Where gradients do not wait in `.grad`, every micro-batch's are reduced over processes, not the last's.

    FSDP2 would otherwise let whole gradients pile up, those of all objectives in one.

    Args:
        model: As it is wrapped.
        keep: How gradients wait (see `GradientBuffers`).
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(True)
    elif isinstance(model, DistributedDataParallel) and keep != "fp32":
        model.require_backward_grad_sync = True  # the Trainer's `no_sync` puts its own value back
