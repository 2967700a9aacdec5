"""Losses of a few positions at a time: no fp32 copy of all logits lives, forward or backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ELEMENTS = 2**22
"""Logits that are treated at once: 16 MiB in fp32."""


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of tensors of k rows, [k]; where they are large, of some rows at a time.

    A chunk's intermediate values are computed again in the backward pass, so that autograd keeps the logits
    as the model gave them and nothing beside.

    Args:
        function: Takes the tensors' rows, the first one's [c, v], and gives one value per row, [c].
        tensors: Each with k rows; converted to fp32 inside `function`, if at all.
    """
    rows = max(1, ELEMENTS // tensors[0].shape[1])
    if len(tensors[0]) <= rows:
        return function(*tensors)
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return torch.cat([function(*part) for part in parts])
    return torch.cat(
        [checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    )


def wide(logits: Tensor) -> Tensor:
    """In fp32; fp64 stays fp64."""
    return logits if logits.element_size() > 4 else logits.float()
