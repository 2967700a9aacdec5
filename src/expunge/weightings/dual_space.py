"""Common descent along the parts of the gradients that no other gradient shares (MOLLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.weightings.contract import check_state
from expunge.weightings.min_norm import min_norm_point


@dataclass
class DualSpaceMGDA:
    r"""MGDA on the dual basis of the gradients: a common descent direction (DS-MGDA of MOLLM).

    With $P = G^{-1}$, $g_i^\perp = \sum_j P_{ij} g_j / P_{ii}$ is the part of $g_i$ that is orthogonal to all
    other gradients, of squared length $1 / P_{ii}$; $\langle g_i^\perp, g_j^\perp \rangle = P_{ij} / (P_{ii}
    P_{jj})$. With $\lambda$ the min-norm point of their convex hull, $d = \sum_i \lambda_i g_i^\perp$, that
    is $w = P\,\mathrm{diag}(P)^{-1} \lambda$, and $\langle d, g_i \rangle = \lambda_i / P_{ii} \ge 0$ for
    *every* objective.

    Where the gradients are linearly dependent to working precision there is no dual basis; the weights
    are then those of plain MGDA, and `fallbacks` counts it. Not invariant to the scales of single gradients:
    like MGDA it leans towards short ones. So a gradient that is nothing but rounding (that of a divergence
    from the reference, at the reference) would take over; an objective whose gradient is no longer than
    `tolerance` times the longest gets weight zero, and the others go on.

    Args:
        tolerance: Working precision, positive. The matrix of cosines counts as singular when its smallest
            eigenvalue is at or below this. Inner products summed in fp32 are good to about 1e-7 of the norms.
        fallbacks: How often plain MGDA stepped in since the last `reset`.

    Example:
        >>> DualSpaceMGDA()(torch.tensor([[1., 0.], [0., 3.]]), torch.zeros(2))
        tensor([0.7500, 0.2500], dtype=torch.float64)

    Reference:
        Pan et al. (2025), arXiv 2412.20412 (DS-MGDA).
    """

    tolerance: float = 1e-6
    fallbacks: int = field(default=0, init=False, repr=False, compare=False)

    needs_gramian = True

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"`tolerance` must lie between 0 and 1; got {self.tolerance}.")

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        gramian = gramian.double()
        squares = gramian.diagonal()
        present = ~(squares <= self.tolerance**2 * squares.max())  # what is not finite stays, to be seen
        weights = torch.zeros(len(gramian), dtype=torch.float64)
        if present.any():
            weights[present] = self._weigh(gramian[present][:, present])
        return weights

    def _weigh(self, gramian: Float[Tensor, "k k"]) -> Float[Tensor, " k"]:
        """Weights of gradients none of which is zero."""
        if not gramian.isfinite().all():
            return torch.full_like(gramian.diagonal(), torch.nan)
        lengths = gramian.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(gramian / lengths[:, None] / lengths[None, :])
        if float(values[0]) <= self.tolerance:
            self.fallbacks += 1
            return min_norm_point(gramian)
        inverse = vectors / values @ vectors.T  # of the cosines: P = inverse / lengths ⊗ lengths
        scaled = lengths / inverse.diagonal()
        mixing = min_norm_point(inverse * scaled[:, None] * scaled[None, :])
        weights: Tensor = inverse @ (scaled * mixing) / lengths
        return weights

    def reset(self) -> None:
        self.fallbacks = 0

    def observe(self, losses: Float[Tensor, " m"]) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, float]:
        return {"fallbacks": float(self.fallbacks)}

    def restore(self, state: Mapping[str, float]) -> None:
        check_state(state, {"fallbacks"})
        self.fallbacks = int(state["fallbacks"])
