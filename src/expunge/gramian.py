"""One gradient per objective, their Gramian, and their combination.

Holds m−1 buffers beyond the `.grad` that training needs anyway, and never an [m, n] stack. Knows
tensors only: no model, no data, no optimizer. Of sharded parameters each rank holds its share of every
gradient; the Gramian's entries are summed over ranks in one all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.shards import Sums, like, settled, share, shares

Gradient = list[Tensor | None]

Keep = Literal["fp32", "bf16", "cpu"]
"""How gradients wait for the others: as they are, rounded to bf16, or on the host."""


def inner(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> float:
    """<left, right> over lists of tensors; None stands for zeros. Tensors' shares are summed in float64."""
    sums = Sums(1)
    for a, b in zip(left, right, strict=True):
        if a is not None:
            sums.add(0, a, a, b)
    return float(sums.total())


class GradientBuffers:
    """The gradients of m objectives with respect to n parameters, accumulated over micro-batches.

    Args:
        parameters: The trainable parameters, sharded or not.
        count: Number of objectives, at least 1.
        keep: How the gradients of all but the last objective wait. `bf16` halves their memory and rounds
            each element to 8 bits of mantissa, once per micro-batch; `cpu` moves them to the host, exactly.

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

    def __init__(self, parameters: Sequence[nn.Parameter], count: int, keep: Keep = "fp32") -> None:
        self.parameters = list(parameters)
        self.keep = keep
        self.gradients: list[Gradient] = [[None] * len(self.parameters) for _ in range(count)]

    @contextmanager
    def collect(self, objective: int) -> Iterator[None]:
        """Backward passes inside add to the gradient of this objective, and to nothing else."""
        held, waits = self.gradients[objective], self._waits(objective)
        for parameter, gradient in zip(self.parameters, held, strict=True):
            parameter.grad = None if waits else gradient
        try:
            yield
        finally:
            for k, parameter in enumerate(self.parameters):
                found, parameter.grad = parameter.grad, None
                found = None if found is None else settled(found)
                held[k] = self._put_away(held[k], found) if waits else found

    def _waits(self, objective: int) -> bool:
        return self.keep != "fp32" and objective < len(self.gradients) - 1

    def _put_away(self, old: Tensor | None, gradient: Tensor | None) -> Tensor | None:
        """This rank's share of old + gradient, as `keep` says."""
        if gradient is None:
            return old
        new = share(gradient)
        new = new if old is None else new + old.to(new)
        return new.to(torch.bfloat16) if self.keep == "bf16" else new.cpu()

    def gramian(self) -> Float[Tensor, "m m"]:
        """G_ij = <g_i, g_j>, float64, on the CPU; the same on every rank."""
        count = len(self.gradients)
        pairs = [(i, j) for i in range(count) for j in range(i + 1)]
        sums = Sums(len(pairs))
        for k, parameter in enumerate(self.parameters):
            for number, (i, j) in enumerate(pairs):
                sums.add(number, parameter, self.gradients[i][k], self.gradients[j][k])
        gramian = torch.zeros(count, count, dtype=torch.float64)
        for (i, j), value in zip(pairs, sums.total().tolist(), strict=True):
            gramian[i, j] = gramian[j, i] = value
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
        target = self._laid_out(self.gradients[self._overwritten])
        _scale(target, float(self._weights[self._overwritten]))
        for i in active[:-1]:
            if self._waits(i):  # one tensor at a time comes back
                self._add_waiting(target, self.gradients[i], float(self._weights[i]))
            else:
                _add(target, self.gradients[i], float(self._weights[i]))
        self.gradients[self._overwritten] = [None] * len(self.parameters)
        for parameter, gradient in zip(self.parameters, target, strict=True):
            parameter.grad = gradient

    def _laid_out(self, gradient: Gradient) -> Gradient:
        """Gradients where and as their parameters are; those that are so already stay what they are."""
        if self._overwritten is None or not self._waits(self._overwritten):
            return gradient
        return [None if g is None else like(g, p) for g, p in zip(gradient, self.parameters, strict=True)]

    def _add_waiting(self, target: Gradient, waiting: Gradient, factor: float) -> None:
        for k, (other, parameter) in enumerate(zip(waiting, self.parameters, strict=True)):
            own = target[k]
            if other is not None and own is not None:
                local = share(own)
                local.add_(other.to(local), alpha=factor)
            elif other is not None:
                target[k] = like(other, parameter) * factor

    def products(self, change: Iterable[Tensor], scale: float = 1.0) -> tuple[Float[Tensor, " m"], float]:
        """<change, g_i> for every objective, after `combine`, and ‖change‖.

        Args:
            change: One tensor per parameter, or this rank's share of it; each is used once, so that they
                need not all exist at a time.
            scale: `.grad` / Σ w_i g_i, other than 1 where the combined gradient was clipped.
        """
        count = len(self.gradients)
        sums = Sums(count + 2)
        for k, (part, parameter) in enumerate(zip(change, self.parameters, strict=True)):
            for i, gradient in enumerate(self.gradients):
                sums.add(i, parameter, part, gradient[k])
            sums.add(count, parameter, part, parameter.grad)
            sums.add(count + 1, parameter, part, part)
        found = sums.total()
        out, combined, square = found[:count].clone(), float(found[count]), float(found[count + 1])
        if (lost := self._overwritten) is not None:
            out[lost] = (combined / scale - float(self._weights @ out)) / self._weights[lost]
        return out, math.sqrt(square)

    def release(self) -> None:
        """Forget all gradients; `.grad` is the caller's."""
        self.gradients = [[None] * len(self.parameters) for _ in self.gradients]


def _scale(gradient: Gradient, factor: float) -> None:
    present = shares(g for g in gradient if g is not None)
    if present and factor != 1.0:
        torch._foreach_mul_(present, factor)


def _add(target: Gradient, other: Gradient, factor: float) -> None:
    """Target += factor * other, in place; a missing target tensor becomes a new one."""
    pairs = [
        (share(t), share(o)) for t, o in zip(target, other, strict=True) if t is not None and o is not None
    ]
    if pairs:
        torch._foreach_add_([t for t, _ in pairs], [o for _, o in pairs], alpha=factor)
    for i, (t, o) in enumerate(zip(target, other, strict=True)):
        if t is None and o is not None:
            target[i] = o * factor
