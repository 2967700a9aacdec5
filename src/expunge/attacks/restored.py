"""Changing a model's weights for a while: everything is put back bit for bit, also after an error.

Knows modules and adapters; knows no record and no attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.hidden import blocks
from expunge.inference import language_model


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Inside, weights may be changed in place, trained and switched; afterwards all is as it was.

    Parameters, buffers, gradients, what trains, and modes. Holds one copy of the weights, on their devices.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, needed, gradient in gradients:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """As `restored`, with an adapter's change merged into the weights inside: what would be deployed."""
    with restored(model):
        if not has_adapter(model):
            yield
            return
        tuner = cast(Any, model)
        with torch.no_grad():
            tuner.merge_adapter()
        try:
            yield
        finally:
            with torch.no_grad():
                tuner.unmerge_adapter()


def has_adapter(model: nn.Module) -> bool:
    """Whether a `peft` adapter stands on top of the weights."""
    return hasattr(model, "disable_adapter")


def linear_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The matrices inside the blocks, without an adapter's own; neither embeddings nor the output layer."""
    return [
        (name, module)
        for name, module in blocks(model).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "lora_" not in name
    ]


def matrices(model: nn.Module) -> list[Float[Tensor, "out in"]]:
    """Their weights, output channels first: views that change the model when they are changed in place."""
    return [
        weight.T if isinstance(module, Conv1D) else weight
        for _, module in linear_modules(model)
        if (weight := cast(Any, module).weight.detach()).is_floating_point()
    ]


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, with the names that the model has without an adapter; the adapter's own left out."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in language_model(model).named_parameters()
        if "lora_" not in name
    }
