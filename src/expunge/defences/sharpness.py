r"""Sharpness-aware forgetting: the forget gradient is taken where weights would undo forgetting fastest.

Relearning, quantisation and pruning are small moves of the weights. A forget loss that is low at one point
only is undone by them; one that is low all around is not. Knows tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.shards import Sums, share, shares


@contextmanager
def uphill(
    parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor | None], radius: float
) -> Iterator[None]:
    r"""Inside, the parameters stand at $\theta + \rho\, g / \lVert g \rVert_2$; bit-identical afterwards.

    A zero gradient, or one that is not finite, moves nothing. Holds one copy of the parameters; of the
    gradient nothing, so that a caller who drops it makes room for the next.

    Args:
        parameters: At θ.
        gradient: g at θ, one tensor per parameter; None stands for zeros.
        radius: ρ, positive.

    Example:
        >>> p = nn.Parameter(torch.tensor([3., 4.]))
        >>> with uphill([p], [torch.tensor([0., 2.])], radius=0.5):
        ...     inside = p.detach().clone()
        >>> inside, p.detach()
        (tensor([3.0000, 4.5000]), tensor([3., 4.]))

    Reference:
        Foret et al. (2021), arXiv 2010.01412, equation 2; on the forget loss alone: Fan et al. (2025),
        arXiv 2502.05374.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"`radius` must be positive; got {radius}. Leave it out to move nothing.")
    sums = Sums(1)  # the parameter says which ranks hold other shares; a gradient that waits does not
    part = None
    for parameter, part in zip(parameters, gradient, strict=True):
        if part is not None:
            sums.add(0, parameter, part, part)
    length = math.sqrt(max(float(sums.total()), 0.0))
    if not 0 < length < math.inf:
        del gradient, part
        yield
        return
    before = [own.clone() for own in shares(parameters)]
    try:
        with torch.no_grad():
            for own, part in zip(shares(parameters), gradient, strict=True):
                if part is not None:
                    own.add_(share(part).to(own), alpha=radius / length)
        torch.clear_autocast_cache()  # weights that were cast at θ must not serve here, nor the reverse
        del gradient, part
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(shares(parameters), before)
        torch.clear_autocast_cache()
