"""Sharded tensors (FSDP2, tensor parallel): what this rank holds, and inner products over what all hold.

Elementwise arithmetic runs on each rank's share by itself. Only sums need the other ranks: all sums of one
step travel in one all-reduce. Knows torch alone; a plain tensor is a share of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Shard

_SMALL = 2**20
"""Elements up to which a buffer is copied as it is."""

_WRAPPED = "_checkpoint_wrapped_module."
"""Part of a parameter's name under FSDP's own activation checkpointing."""

Split = tuple[object, tuple[int, ...]] | None
"""Mesh and the mesh dimensions over which a tensor is cut; None for a plain tensor."""


def share(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, detached, in the tensor's own memory."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            local: Tensor = tensor.to_local()
            return local.detach()
        return tensor.detach()


def shares(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of several tensors."""
    return [share(tensor) for tensor in tensors]


def settled(gradient: Tensor) -> Tensor:
    """A gradient without pending sums: tensor parallelism leaves some to be summed over its ranks."""
    if isinstance(gradient, DTensor) and any(isinstance(p, Partial) for p in gradient.placements):
        from torch.distributed.tensor import Replicate

        whole = [Replicate() if isinstance(p, Partial) else p for p in gradient.placements]
        return gradient.redistribute(placements=whole)
    return gradient


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; every rank must ask."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def like(local: Tensor, model: Tensor) -> Tensor:
    """A rank's share as a tensor laid out as `model` is."""
    local = local.to(device=share(model).device, dtype=model.dtype)
    if not isinstance(model, DTensor):
        return local
    made: Tensor = DTensor.from_local(
        local,
        model.device_mesh,
        model.placements,
        run_check=False,
        shape=model.shape,
        stride=model.stride(),
    )
    return made


class Sums:
    """Several inner products over lists of tensors, taken apart on each rank and summed over ranks once.

    Args:
        count: Number of sums.

    Example:
        >>> sums = Sums(1)
        >>> sums.add(0, torch.ones(3), torch.ones(3), torch.tensor([1., 2., 3.]))
        >>> sums.total()
        tensor([6.], dtype=torch.float64)
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._parts: dict[Split, list[list[Tensor]]] = {}

    def add(self, number: int, owner: Tensor, left: Tensor | None, right: Tensor | None) -> None:
        """Add <left, right> of one parameter to a sum.

        Args:
            number: Which sum.
            owner: The parameter, whose layout says which ranks hold other shares.
            left: Its share or the whole, in any precision, on any device; None stands for zeros.
            right: As `left`; moved to where `left` is.
        """
        parts = self._parts.setdefault(_split(owner), [[] for _ in range(self.count)])
        if left is not None and right is not None:
            a, b = share(left).reshape(-1), share(right).reshape(-1)
            wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
            parts[number].append(torch.dot(a.to(wide), b.to(device=a.device, dtype=wide)))

    def total(self) -> Float[Tensor, " s"]:
        """The sums, float64, on the CPU; tensors' shares are added in float64. Every rank must ask."""
        out = torch.zeros(self.count, dtype=torch.float64)
        for split, parts in self._parts.items():
            out += _over_ranks(torch.stack([_fetch(found) for found in parts]), split)
        return out


def reshard(model: nn.Module) -> None:
    """Let go of whole parameters that a forward pass without a backward pass has left behind.

    FSDP2 keeps those of some modules for the backward pass to come; where none comes they would hide what an
    optimizer, or a restored state, has since done to the shares.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model before it is sharded, without its weights: they are on the meta device."""
    held = [*model.parameters(), *(b for b in model.buffers() if b.numel() > _SMALL)]
    memo: dict[int, object] = {}
    for tensor in held:
        empty = torch.empty_like(tensor, device="meta")
        trains = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if trains else empty
    return copy.deepcopy(model, memo)


def fill(empty: nn.Module, model: nn.Module) -> nn.Module:
    """Put the whole weights of a sharded model, on the CPU, into its skeleton; every rank must ask.

    Memory: the whole model, on every rank's host.
    """
    named: Iterable[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    found = {name.replace(_WRAPPED, ""): tensor for name, tensor in named}
    with torch.no_grad():
        for name, parameter in empty.named_parameters():
            value = whole(found[name].detach()).cpu()
            torch.utils.swap_tensors(parameter, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for name, buffer in empty.named_buffers():
            if buffer.is_meta:
                torch.utils.swap_tensors(buffer, whole(found[name]).cpu())
    return empty.train(model.training)


def _split(tensor: Tensor) -> Split:
    if not isinstance(tensor, DTensor):
        return None
    cut = tuple(i for i, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    return (tensor.device_mesh, cut)


def _fetch(parts: list[Tensor]) -> Tensor:
    """Sum of numbers on a device, fetched at once."""
    if not parts:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(parts).cpu().double().sum()


def _over_ranks(values: Tensor, split: Split) -> Tensor:
    if split is None:
        return values
    mesh, cut = split
    moved = values.to(mesh.device_type)  # type: ignore[attr-defined]
    for dimension in cut:
        dist.all_reduce(moved, group=mesh.get_group(dimension))  # type: ignore[attr-defined]
    return moved.cpu()
