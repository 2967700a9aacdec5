"""An optimizer's step taken a part of the parameters at a time.

How far every parameter moved is then known without a copy of them all: what a part was stands beside it only
until the next part moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.shards import share

PARTS, SMALLEST = 16, 64 << 20
"""A part is a sixteenth of the parameters, of 64 MiB at least; a larger parameter is one by itself."""

_SEPARABLE = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
)
"""Optimizers that move every parameter by its own gradient and state, and none that has no gradient."""


def separable(optimizer: Any) -> bool:
    """Whether an optimizer's step over all parameters is its steps over parts of them, bit for bit.

    Not where a user has hooked something to its steps: that expects to be called once a step.
    """
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return type(optimizer) in _SEPARABLE and not hooked


def falls(optimizer: Any, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """Take the step, and say for every parameter what it was less what it is (this rank's share).

    Parameters have their gradient while their own fall is looked at. At the end none has one: to step once
    more would move nothing.

    Args:
        optimizer: One that is `separable`, over these parameters.
        parameters: All that train.
    """
    gradients = [parameter.grad for parameter in parameters]
    for part in _parts(parameters):
        for k, parameter in enumerate(parameters):
            parameter.grad = gradients[k] if k in part else None
        before = [share(parameters[k]).clone() for k in part]
        optimizer.step()
        for k in part:
            yield before.pop(0).sub_(share(parameters[k]))
            gradients[k] = None
    for parameter in parameters:
        parameter.grad = None


def _parts(parameters: Sequence[nn.Parameter]) -> Iterator[range]:
    """Consecutive parameters whose shares take about as many bytes; the last part may be small."""
    sizes = [share(parameter).nbytes for parameter in parameters]
    most, start, size = max(SMALLEST, sum(sizes) // PARTS), 0, 0
    for k, own in enumerate(sizes):
        if k > start and size + own > most:
            yield range(start, k)
            start, size = k, 0
        size += own
    if start < len(sizes):
        yield range(start, len(sizes))
