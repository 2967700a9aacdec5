"""When a run has left all bounds: weights that are not finite, a retain loss beyond that of a blind guess."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from expunge.methods import Method
from expunge.objectives import KL, NLL

TIMES = 2.0
"""How far beyond a blind guess, and beyond its first value, a retain loss stands when it has exploded."""


def exploded(
    method: Method, model: nn.Module, losses: Mapping[str, float], first: Mapping[str, float]
) -> str:
    r"""What is to be said of losses that have exploded; nothing where they have not.

    A model that knows nothing gives every token of the vocabulary the same probability: $\ln v$ nats per
    token. A retain loss (NLL or KL, in nats per token) that exceeds both $2 \ln v$ and twice its value at the
    first step is that of a model confidently wrong about what it should keep: no repair is near. Other
    objectives have other units and are not judged.

    Args:
        method: Its objectives.
        model: Says how large the vocabulary is.
        losses: Objective -> mean value of a step.
        first: The same of the first step of the run.
    """
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(size, int) or size < 2:
        return ""
    bound = TIMES * math.log(size)
    for objective in method.objectives:
        name = objective.name
        if objective.source != "retain" or not isinstance(objective, NLL | KL) or name not in losses:
            continue
        if losses[name] > max(bound, TIMES * first.get(name, 0.0)):
            return f"The retain loss exploded to {losses[name]:.1f} nats per token"
    return ""


def finite(parameters: Sequence[Tensor]) -> bool:
    """Whether the parameters (this process's shards of them) are finite."""
    return all(bool(torch.linalg.vector_norm(_local(p)).isfinite()) for p in parameters)


def _local(parameter: Tensor) -> Tensor:
    values: Any = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values
