"""What a model's weights are: their hash, their number, their norm."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from expunge.four_bits import as_read, codes_of
from expunge.record import ModelEntry


def model_entry(source: str, model: nn.Module) -> ModelEntry:
    """A model as a record tells of it.

    Args:
        source: What it is called.
        model: Its weights are hashed. Where the matrices of its blocks are in 4 bits, `dtype` is their code,
            `nf4` or `fp4`.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    codes = (str(state.quant_type) for p in model.parameters() if (state := codes_of(p)))
    return ModelEntry(
        source=source,
        sha256=weights_hash(model),
        parameters=parameter_count(model),
        dtype=next(codes, dtype),
    )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over name, shape, dtype and bytes of every tensor of the state, by name; tied ones once."""
    digest = hashlib.sha256()
    seen = set()
    for name, tensor in sorted(model.state_dict().items()):
        storage = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and storage in seen:
            continue
        seen.add(storage)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_count(model: nn.Module) -> int:
    """Parameters, trained or frozen; tied ones once, those in 4 bits each for itself."""
    return sum(codes_of(p).shape.numel() if codes_of(p) else p.numel() for p in model.parameters())


def weights_norm(model: nn.Module) -> float:
    """‖θ‖₂ over all parameters, trained or frozen; of those in 4 bits as they are read.

    Raises:
        ValueError: A parameter holds codes of another kind.
    """
    return math.hypot(*(_norm(name, parameter) for name, parameter in model.named_parameters()))


def _norm(name: str, parameter: nn.Parameter) -> float:
    values = as_read(parameter)
    if not values.is_floating_point():
        raise ValueError(
            f"the weights must be numbers or 4-bit codes for their norm to be known; {name} holds "
            f"{values.dtype}. Set `sharpness`, or load the model unquantised."
        )
    wide = torch.float32 if values.device.type == "mps" else torch.float64  # which has no float64
    return float(torch.linalg.vector_norm(values, dtype=wide))
