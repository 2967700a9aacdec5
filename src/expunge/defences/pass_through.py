"""Differentiating through what has no useful gradient: apply it forwards, ignore it backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PassThrough(nn.Module):
    """A filter in front of a model that gradient attacks must not be fooled by.

    Forwards it is the filter, backwards the identity (BPDA): an attack that only works against a model whose
    filter hides its gradient is no defence, and one that fails against this may be.

    Args:
        function: From a tensor to one of the same shape; no gradient flows through it.

    Example:
        >>> x = torch.tensor([0.2, 1.7], requires_grad=True)
        >>> PassThrough(torch.round)(x).square().sum().backward()
        >>> x.grad
        tensor([0., 4.])

    Reference:
        Athalye et al. (2018), arXiv 1802.00420, section 4.1.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The filtered tensor.

        Raises:
            ValueError: The filter changed the shape.
        """
        filtered: Tensor = _Through.apply(x, self.function)  # type: ignore[no-untyped-call]
        return filtered


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        filtered = function(x.detach())
        if filtered.shape != x.shape:
            raise ValueError(
                f"`function` must keep the shape {tuple(x.shape)} (the identity stands for its gradient); "
                f"got {tuple(filtered.shape)}."
            )
        return filtered

    @staticmethod
    def backward(_context: Any, *gradients: Any) -> Any:
        return gradients[0], None


def nearest_tokens(embedding: nn.Module) -> Callable[[Tensor], Tensor]:
    """A filter that lets only real tokens through: each vector becomes the embedding nearest to it.

    Args:
        embedding: The model's input embedding, with a `weight` of [v, d].
    """

    def snap(x: Tensor) -> Tensor:
        weight: Tensor = embedding.weight  # type: ignore[assignment]
        flat = x.reshape(-1, x.shape[-1])
        found = [torch.cdist(part[None].float(), weight.detach()[None].float())[0].argmin(1)
                 for part in flat.split(256)]  # fmt: skip
        return weight.detach()[torch.cat(found)].to(x.dtype).reshape(x.shape)

    return snap
