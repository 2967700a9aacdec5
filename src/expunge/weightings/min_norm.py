"""The shortest convex combination of gradients: MGDA, solved exactly."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torchjd.aggregation import MGDAWeighting

EXACT_UP_TO = 8  # objectives: 2^m − 1 faces of the simplex, each one small linear system


@dataclass(frozen=True)
class MinNorm:
    r"""Weights of the shortest convex combination of the gradients (MGDA).

    Solves $\min_{w \in \Delta_m} w^\top G w$. For the minimiser $\langle d, g_i \rangle \ge
    \lVert d \rVert^2$: a step along $-d$ lowers every objective. Zero exactly where the objectives are Pareto
    stationary. Up to 8 objectives every face of the simplex is tried, and the answer is exact to rounding;
    beyond, TorchJD's Frank–Wolfe iteration. Where gradients cancel out, the Gramian knows what is left of
    them only to 1e-8 of their lengths.

    Example:
        >>> MinNorm()(torch.tensor([[1., 0.], [0., 3.]]), torch.zeros(2))
        tensor([0.7500, 0.2500], dtype=torch.float64)

    Reference:
        Désidéri (2012); Sener and Koltun (2018), arXiv 1810.04650.
    """

    needs_gramian = True

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        return min_norm_point(gramian.double())


def min_norm_point(gramian: Float[Tensor, "m m"]) -> Float[Tensor, " m"]:
    """Weights on the simplex that minimise w·G·w.

    Args:
        gramian: Symmetric, positive semidefinite up to rounding, float64; it may be singular, and its
            diagonal may span any range that squares stay finite in.
    """
    squares = gramian.diagonal().clamp(min=0)
    if not gramian.isfinite().all():
        return torch.full_like(squares, torch.nan)
    if (squares == 0).any():
        return (squares == 0).double() / (squares == 0).sum()
    if len(gramian) > EXACT_UP_TO:
        weights: Tensor = MGDAWeighting(epsilon=1e-9, max_iters=10_000)(gramian / squares.max())
        return weights.double()
    lengths = squares.sqrt()
    cosines = gramian / lengths[:, None] / lengths[None, :]
    inverse = lengths.min() / lengths
    return _best_face(cosines, inverse) * inverse


def _best_face(cosines: Float[Tensor, "m m"], inverse: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The best y >= 0 with Σ y_i · inverse_i = 1, in units of unit vectors, over all faces of the simplex."""
    count = len(inverse)
    best, best_value = torch.zeros(count, dtype=torch.float64), float("inf")
    for size in range(1, count + 1):
        for face in combinations(range(count), size):
            index = list(face)
            part = _stationary(cosines[index][:, index], inverse[index])
            if part is None or (part < 0).any():
                continue
            value = float(part @ cosines[index][:, index] @ part)
            if value < best_value * (1 - 1e-12):
                best, best_value = torch.zeros(count, dtype=torch.float64), value
                best[index] = part
    return best


def _stationary(cosines: Float[Tensor, "k k"], inverse: Float[Tensor, " k"]) -> Float[Tensor, " k"] | None:
    """Where y·C·y is stationary on the plane inverse·y = 1: one bordered linear system, None if singular."""
    size = len(inverse)
    system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size], system[:size, size], system[size, :size] = cosines, inverse, inverse
    right = torch.zeros(size + 1, dtype=torch.float64)
    right[size] = 1.0
    solution, info = torch.linalg.solve_ex(system, right)
    return None if int(info) or not solution.isfinite().all() else solution[:size]
