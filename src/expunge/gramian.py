"""One gradient per objective, their Gramian, and their combination.

Holds m−1 buffers beyond the `.grad` that training needs anyway, and never an [m, n] stack. Knows
tensors only: no model, no data, no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

Gradient = list[Tensor | None]


def inner(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> float:
    """<left, right> over lists of tensors; None stands for zeros. Tensors' shares are summed in float64."""
    return _total(_dot(a, b) for a, b in zip(left, right, strict=True))


def _dot(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return None if left is None or right is None else torch.dot(left.reshape(-1), right.reshape(-1))


def _total(parts: Iterable[Tensor | None]) -> float:
    """Sum of numbers on a device, fetched at once."""
    present = [part for part in parts if part is not None]
    return float(torch.stack(present).cpu().double().sum()) if present else 0.0


class GradientBuffers:
    """The gradients of m objectives with respect to n parameters, accumulated over micro-batches.

    Args:
        parameters: The trainable parameters.
        count: Number of objectives, at least 1.

    Example:
        >>> p = nn.Parameter(torch.tensor([1., 2.]))
        >>> buffers = GradientBuffers([p], 2)
        >>> for i, target in enumerate((3., 4.)):
        ...     with buffers.collect(i):
        ...         (p * target).sum().backward()
        >>> buffers.gramian()
        tensor([[18., 24.],
                [24., 32.]], dtype=torch.float64)
        >>> buffers.combine(torch.tensor([1., -1.]))
        >>> p.grad
        tensor([-1., -1.])
    """

    def __init__(self, parameters: Sequence[nn.Parameter], count: int) -> None:
        self.parameters = list(parameters)
        self.gradients: list[Gradient] = [[None] * len(self.parameters) for _ in range(count)]

    @contextmanager
    def collect(self, objective: int) -> Iterator[None]:
        """Backward passes inside add to the gradient of this objective, and to nothing else."""
        for parameter, gradient in zip(self.parameters, self.gradients[objective], strict=True):
            parameter.grad = gradient
        try:
            yield
        finally:
            self.gradients[objective] = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None

    def gramian(self) -> Float[Tensor, "m m"]:
        """G_ij = <g_i, g_j>, float64, on the CPU."""
        count = len(self.gradients)
        gramian = torch.zeros(count, count, dtype=torch.float64)
        for i in range(count):
            for j in range(i + 1):
                gramian[i, j] = gramian[j, i] = inner(self.gradients[i], self.gradients[j])
        return gramian

    def combine(self, weights: Float[Tensor, " m"]) -> None:
        """Set `.grad` to Σ w_i g_i, in the memory of the last gradient that takes part.

        The gradients of the other objectives stay readable until `release`; the one that was
        overwritten is recovered by linearity in `products`.
        """
        self._weights = weights.double()
        active = [i for i, weight in enumerate(self._weights.tolist()) if weight != 0]
        self._overwritten = active[-1] if active else None
        if self._overwritten is None:
            return
        target = self.gradients[self._overwritten]
        _scale(target, float(self._weights[self._overwritten]))
        for i in active[:-1]:
            _add(target, self.gradients[i], float(self._weights[i]))
        self.gradients[self._overwritten] = [None] * len(self.parameters)
        for parameter, gradient in zip(self.parameters, target, strict=True):
            parameter.grad = gradient

    def products(self, change: Iterable[Tensor], scale: float = 1.0) -> tuple[Float[Tensor, " m"], float]:
        """<change, g_i> for every objective, after `combine`, and ‖change‖.

        Args:
            change: One tensor per parameter; each is used once, so that they need not all exist at a time.
            scale: `.grad` / Σ w_i g_i, other than 1 where the combined gradient was clipped.
        """
        squares, combined = [], []
        shares: list[list[Tensor | None]] = [[] for _ in self.gradients]
        for k, (part, parameter) in enumerate(zip(change, self.parameters, strict=True)):
            squares.append(_dot(part, part))
            combined.append(_dot(part, parameter.grad))
            for share, gradient in zip(shares, self.gradients, strict=True):
                share.append(_dot(part, gradient[k]))
        out = torch.tensor([_total(share) for share in shares], dtype=torch.float64)
        if (lost := self._overwritten) is not None:
            out[lost] = (_total(combined) / scale - float(self._weights @ out)) / self._weights[lost]
        return out, math.sqrt(_total(squares))

    def release(self) -> None:
        """Forget all gradients; `.grad` is the caller's."""
        self.gradients = [[None] * len(self.parameters) for _ in self.gradients]


def _scale(gradient: Gradient, factor: float) -> None:
    present = [g for g in gradient if g is not None]
    if present and factor != 1.0:
        torch._foreach_mul_(present, factor)


def _add(target: Gradient, other: Gradient, factor: float) -> None:
    """Target += factor * other, in place; a missing target tensor becomes a new one."""
    pairs = [(t, o) for t, o in zip(target, other, strict=True) if t is not None and o is not None]
    if pairs:
        torch._foreach_add_([t for t, _ in pairs], [o for _, o in pairs], alpha=factor)
    for i, (t, o) in enumerate(zip(target, other, strict=True)):
        if t is None and o is not None:
            target[i] = o * factor
