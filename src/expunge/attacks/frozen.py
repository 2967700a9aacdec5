"""A model whose inputs and activations have gradients and whose weights have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from expunge.inference import Precision


@contextmanager
def frozen(model: nn.Module, precision: Precision) -> Iterator[torch.device]:
    """Evaluation mode, gradients on, parameters without; all is put back at the end, also on error.

    Args:
        model: Wrapped or not.
        precision: Of the forward passes; "fp32" runs in the weights' own dtype.

    Yields:
        The device of the first parameter.
    """
    device = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield device
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
