"""Weights in 4 bits, as bitsandbytes holds them (QLoRA): how to ask for them, keep them, and read them.

bitsandbytes is the extra `qlora` and is imported where such weights are met.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from expunge.errors import UsageError

FOUR_BIT = ("nf4", "fp4")
"""What weights may be held in beside the dtypes of torch."""


def four_bit(device: torch.device, kind: str = "nf4") -> Any:
    """How to load a model in 4 bits for an adapter to train on (QLoRA).

    Args:
        device: Where it will stand.
        kind: `nf4` or `fp4`.

    Raises:
        UsageError: bitsandbytes is not installed, or does not run there.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("lora_4bit needs the package bitsandbytes: pip install 'expunge[qlora]'.")
    found = importlib.import_module("bitsandbytes")
    able: set[str] = getattr(found, "supported_torch_devices", {"cuda"})  # which came with 0.46
    if device.type not in able:
        raise UsageError(
            f"lora_4bit needs a device that bitsandbytes {found.__version__} runs on "
            f"({', '.join(sorted(able))}); the run is on {device.type}. Leave it off: LoRA runs without."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def keep_codes(model: nn.Module) -> None:
    """Let no pass change how 4-bit weights are held; a model without any is left alone.

    In evaluation mode on a CPU with AVX512-BF16, bitsandbytes (0.50) packs them anew, in place and with
    coarser scales (and fails where a matrix has no multiple of 32 rows); a training step afterwards passes no
    gradient through them. On every device a first pass rounds biases to the precision of the products.
    """
    for module in model.modules():
        if not (codes_of(getattr(module, "weight", None)) and hasattr(module, "compute_dtype")):
            continue
        layer = cast(Any, module)
        layer.support_avx512bf16_for_cpu = False
        if layer.bias is not None and layer.compute_dtype is not None:
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)


def codes_of(parameter: object) -> Any:
    """How bitsandbytes holds a parameter in 4 bits (its `QuantState`); None for one that is plain."""
    return getattr(parameter, "quant_state", None)


def as_read(parameter: nn.Parameter) -> torch.Tensor:
    """What a parameter's values are in a product, without a graph: those of 4-bit codes are looked up."""
    if state := codes_of(parameter):
        read: torch.Tensor = importlib.import_module("bitsandbytes.functional").dequantize_4bit(
            parameter.detach(), state
        )
        return read
    return parameter.detach()
