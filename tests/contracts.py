"""Laws shared by all implementations, as named assertions over sampled matrices.

Adding a weighting or a step size to the suite is adding a line to the list of its test module.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from expunge.step_sizes import Line, StepSize
from expunge.weightings import Weighting


def jacobian(seed: int, m: int, n: int, rank: int, scale: float) -> Tensor:
    """An m×n matrix of the given rank whose rows differ in length by up to three decades."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(m, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    lengths = 10 ** (3 * torch.rand(m, 1, generator=generator, dtype=torch.float64))
    return left @ right * lengths * scale


@st.composite
def jacobians(draw: st.DrawFn, rows: st.SearchStrategy[int] | None = None) -> Tensor:
    """Jacobians over m, rank and scale."""
    m = draw(rows if rows is not None else st.integers(1, 5))
    rank = draw(st.integers(1, m))
    scale = 10.0 ** draw(st.integers(-6, 6))
    return jacobian(draw(st.integers(0, 2**16)), m, 12, rank, scale)


def assert_finite_weights(weighting: Weighting, gradients: Tensor) -> None:
    m = len(gradients)
    weights = weighting(gradients @ gradients.T, torch.ones(m, dtype=torch.float64))
    assert weights.shape == (m,)
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()


def assert_permutation_equivariant(weighting: Weighting, gradients: Tensor, order: list[int]) -> None:
    losses = torch.arange(1.0, len(gradients) + 1, dtype=torch.float64)
    plain = weighting(gradients @ gradients.T, losses)
    shuffled = gradients[order]
    torch.testing.assert_close(
        weighting(shuffled @ shuffled.T, losses[order]), plain[order], rtol=1e-6, atol=1e-9
    )


def assert_direction_invariant_to_gradient_scales(
    weighting: Weighting, gradients: Tensor, scales: Tensor
) -> None:
    """Σ w_i g_i is the same when every gradient is rescaled by a positive factor of its own."""
    losses = torch.ones(len(gradients), dtype=torch.float64)
    plain = weighting(gradients @ gradients.T, losses) @ gradients
    scaled = gradients * scales[:, None]
    torch.testing.assert_close(weighting(scaled @ scaled.T, losses) @ scaled, plain, rtol=1e-6, atol=1e-9)


def assert_non_conflicting_pair(weighting: Weighting, gradients: Tensor) -> None:
    """For two objectives, <d, g_i> >= 0 for both, on the explicit vectors."""
    weights = weighting(gradients @ gradients.T, torch.ones(2, dtype=torch.float64))
    direction, lengths = weights @ gradients, gradients.norm(dim=1)
    slack = 1e-12 * lengths * (weights.abs() @ lengths)  # rounding of the two summands of d
    assert (gradients @ direction >= -slack).all()


def quadratic(slope: float, curvature: float, rate: float) -> Line:
    """The line that a quadratic retain loss L(x) = 2 − slope·x + curvature·x²/2 shows at x = k·rate."""

    def loss(k: int) -> Tensor:
        x = k * rate
        return torch.full((3,), 2 - slope * x + curvature * x * x / 2, dtype=torch.float64)

    return Line(minus=loss(-1), zero=loss(0), plus=loss(1), tokens=torch.ones(3))


def assert_finds_minimum_of_quadratic(rule: StepSize, slope: float, curvature: float, rate: float) -> None:
    """Repeated measurement converges to slope / curvature, the exact minimiser, from any start."""
    for _ in range(200):
        rate = rule(rate, quadratic(slope, curvature, rate)).learning_rate
    assert math.isclose(rate, slope / curvature, rel_tol=1e-4)


def assert_positive_and_clipped(rule: StepSize, line: Line, rate: float, clip: tuple[float, float]) -> None:
    proposal = rule(rate, line)
    assert clip[0] * rate * (1 - 1e-12) <= proposal.learning_rate <= clip[1] * rate * (1 + 1e-12)
    assert proposal.learning_rate > 0
    assert proposal.decision
