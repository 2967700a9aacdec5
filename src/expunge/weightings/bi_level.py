"""One objective first, the others as far as they leave it alone (BLUR)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class BiLevel:
    r"""The gradients of the upper level, corrected along the gradient of the lower level (BLUR).

    With $g_L$ the gradient of the lower objective (forgetting, which has priority) and $g_U$ the sum of
    the other gradients,
    $d = g_U + (\gamma - \langle g_U, g_L \rangle / \lVert g_L \rVert^2)\, g_L$: what the upper level would
    do along $g_L$ is taken out and $\gamma g_L$ put in its place, so that
    $\langle d, g_L \rangle = \gamma \lVert g_L \rVert^2 \ge 0$ whatever the upper level wants. The upper
    level has no such guarantee: $\langle d, g_U \rangle = \lVert g_U \rVert^2 \sin^2 + \gamma \langle g_U,
    g_L \rangle$ may be negative. Where $g_L$ vanishes nothing is corrected and its weight is zero.

    Args:
        lower: Position of the lower objective.
        gamma: γ, how far the lower level goes per step, non-negative.
        count: Objectives of the method. Given fewer (a repair step, in which the lower one rests), all
            of them belong to the upper level.

    Example:
        >>> BiLevel()(torch.tensor([[4., -2.], [-2., 9.]]), torch.zeros(2))
        tensor([1.5000, 1.0000], dtype=torch.float64)

    Reference:
        Reisizadeh et al. (2025), arXiv 2506.08164; the rule as in github.com/OptimAI-Lab/BLURLLMUnlearning,
        where γ is 1.
    """

    lower: int = 0
    gamma: float = 1.0
    count: int = 2

    needs_gramian = True

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"`gamma` must be non-negative and finite; got {self.gamma}.")
        if self.count < 2 or not 0 <= self.lower < self.count:
            raise ValueError(
                "`lower` must name one of `count` objectives, of which there are at least 2; "
                f"got lower={self.lower}, count={self.count}."
            )

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        weights = torch.ones(len(gramian), dtype=torch.float64)
        if len(gramian) > self.count:
            raise ValueError(f"`count` must be the number of objectives ({len(gramian)}); got {self.count}.")
        if len(gramian) < self.count:
            return weights
        products = gramian.double()[self.lower]
        square = products[self.lower]
        overlap = products.sum() - square
        weights[self.lower] = torch.where(square == 0, 0.0, self.gamma - overlap / square)
        return weights
