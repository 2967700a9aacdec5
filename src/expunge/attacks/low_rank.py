"""A LoRA adapter made of hooks: nothing of the model is replaced, so taking it off leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from expunge.attacks.restored import linear_modules


@contextmanager
def low_rank(model: nn.Module, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    r"""Inside, every matrix of the blocks computes $W x + 2 B A x$, with B zero at first.

    Args:
        model: A causal language model.
        rank: Rows of A and columns of B, at least 1.
        seed: Of A.

    Yields:
        The factors to train.

    Reference:
        Hu et al. (2021), arXiv 2106.09685, section 4.1 (alpha twice the rank).
    """
    factors: list[nn.Parameter] = []
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as hooks:
        for _, module in linear_modules(model):
            first, second = _factors(module, rank, generator)
            hooks.callback(module.register_forward_hook(_adding(first, second)).remove)
            factors += [first, second]
        yield factors


def _factors(module: nn.Module, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    into, out = weight.shape if isinstance(module, Conv1D) else weight.shape[::-1]
    first = torch.randn(rank, into, generator=generator) / math.sqrt(into)
    return nn.Parameter(first.to(weight.device)), nn.Parameter(torch.zeros(out, rank, device=weight.device))


def _adding(first: nn.Parameter, second: nn.Parameter) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        change = 2 * linear(linear(args[0].to(first.dtype), first), second)
        return output + change.to(output.dtype)

    return hook
