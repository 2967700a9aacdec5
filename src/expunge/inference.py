"""What the passes over a model share: its state while it is measured, what it is made of, how rows are cut.

Knows a causal language model, wrapped or not; knows no record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import GenerationMixin, PreTrainedModel

from expunge.shards import reshard

Precision = Literal["fp32", "bf16"]

Progress = Callable[[int], None]
"""Takes the number of rows finished since the last call."""


@contextmanager
def evaluating(model: nn.Module, precision: Precision) -> Iterator[torch.device]:
    """Evaluation mode without gradients, in a stated precision; all is put back at the end, also on error.

    For bf16 one autocast context spans all that happens inside, so that each weight is cast once and not once
    per forward pass. Autocast keeps casts only of leaves that require a gradient, so frozen weights pretend
    to for as long as no gradient can be recorded. Mixed precision training replaces `forward` on the
    instance; inside, the class's own one runs.

    Args:
        model: Wrapped or not.
        precision: "fp32" runs in the weights' own dtype even where the caller is under autocast.

    Yields:
        The device of the first parameter.
    """
    device = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    frozen = [p for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad]
    mixed = vars(model).pop("forward", None)
    model.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield device
    finally:
        reshard(model)
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in training:
            module.training = True
        if mixed is not None:
            vars(model)["forward"] = mixed


def bare(model: nn.Module) -> nn.Module:
    """The model without a wrapper whose forward pass waits for other processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def language_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model that `model` is or holds.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ValueError(f"`model` must be or hold a transformers model; got {type(model).__name__}.")


def generator(model: nn.Module) -> GenerationMixin:
    """The part of `model` that can generate.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, GenerationMixin):
            return module
    raise ValueError(f"`model` must be or hold a model that can generate; got {type(model).__name__}.")


def model_context(model: nn.Module) -> int | None:
    """Positions that the configuration of a model in memory states, if it states any."""
    stated = getattr(language_model(model).config.get_text_config(), "max_position_embeddings", None)
    return None if stated is None else int(stated)


def cache_bytes(model: nn.Module) -> int:
    """Bytes of keys and values that a decoding model keeps per token, in the dtype of its weights."""
    config = language_model(model).config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width) * next(model.parameters()).element_size()


def runs(
    order: Iterable[int], sizes: Sequence[tuple[int, ...]] | Mapping[int, tuple[int, ...]], budget: int
) -> Iterator[list[int]]:
    """Cut a sequence of items into runs; a run's width is the sum of its items' widest sizes.

    Items x width stays within the budget, unless one item alone exceeds it.
    """
    run: list[int] = []
    widest: tuple[int, ...] = ()
    for item in order:
        wider = tuple(map(max, widest, sizes[item])) if run else sizes[item]
        if run and (len(run) + 1) * sum(wider) > budget:
            yield run
            run, wider = [], sizes[item]
        run.append(item)
        widest = wider
    if run:
        yield run
