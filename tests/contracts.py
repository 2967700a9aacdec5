"""Laws shared by all implementations, as named assertions over sampled matrices.

Adding a weighting or a step size to the suite is adding a line to the list of its test module.
Directions are checked on the explicit vectors, to a slack relative to the lengths that are added up:
`SLACK` where the gradients are independent, `CANCELLED` where they may cancel out. A Gramian in float64 is
good to 1e-16 of squared lengths, so what is left of gradients that cancel is known to 1e-8 of their length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from expunge.step_sizes import Line, StepSize, WithinBudget
from expunge.weightings import Stateful, Weighting

SLACK, CANCELLED = 1e-10, 1e-8


def jacobian(seed: int, m: int, n: int, rank: int, scale: float) -> Tensor:
    """An m×n matrix of the given rank whose rows differ in length by up to three decades."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(m, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    lengths = 10 ** (3 * torch.rand(m, 1, generator=generator, dtype=torch.float64))
    return left @ right * lengths * scale


@st.composite
def jacobians(
    draw: st.DrawFn, rows: st.SearchStrategy[int] | None = None, *, full_rank: bool = False, decades: int = 8
) -> Tensor:
    """Jacobians over m, rank (0: all gradients vanish) and scale; some with two equal or opposite rows."""
    m = draw(rows if rows is not None else st.integers(1, 5))
    rank = m if full_rank else draw(st.integers(0, m))
    scale = 10.0 ** draw(st.integers(-decades, decades))
    out = jacobian(draw(st.integers(0, 2**16)), m, 12, rank, scale)
    if m > 1 and not full_rank:
        out[1] = draw(st.sampled_from([out[1], out[0], -out[0], 0 * out[0]]))
    return out


def losses_of(gradients: Tensor) -> Tensor:
    """Some loss values, of either sign, none of them zero."""
    signs = torch.tensor([(-1.0) ** (i + 1) for i in range(len(gradients))], dtype=torch.float64)
    return signs * torch.arange(1.0, len(gradients) + 1, dtype=torch.float64)


def direction(weighting: Weighting, gradients: Tensor, losses: Tensor | None = None) -> Tensor:
    """Σ w_i g_i on the explicit vectors."""
    losses = losses_of(gradients) if losses is None else losses
    return weighting(gradients @ gradients.T, losses) @ gradients


def assert_finite_weights(weighting: Weighting, gradients: Tensor) -> None:
    weights = weighting(gradients @ gradients.T, losses_of(gradients))
    assert weights.shape == (len(gradients),)
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()


def assert_permutation_equivariant(
    make: Callable[[list[int]], Weighting], gradients: Tensor, order: list[int], tolerance: float = 1e-6
) -> None:
    """Objectives in another order get the same weights, in that order; what is remembered moves along.

    Args:
        make: Builds the weighting for objectives in the given order of the original ones.
        gradients: Of a first step; the second one has them halved, against the order of the rows.
        order: Of the objectives.
        tolerance: Relative to the largest weight.
    """
    plain, shuffled = make([*range(len(gradients))]), make(order)
    for step in (gradients, gradients.flip(0) / 2):
        losses = losses_of(step)
        expected = plain(step @ step.T, losses)[order]
        found = shuffled(step[order] @ step[order].T, losses[order])
        bound = tolerance * float(expected.abs().max()) + 1e-9
        torch.testing.assert_close(found, expected, rtol=0, atol=bound)
        for weighting, seen in ((plain, losses), (shuffled, losses[order])):
            if isinstance(weighting, Stateful):
                weighting.observe(seen)


def assert_permutation_equivariant_on_average(
    make: Callable[[int], Weighting], gradients: Tensor, order: list[int], draws: int = 150
) -> None:
    """As above for weightings that draw lots: the means of many draws agree to five standard errors.

    Args:
        make: Builds the weighting from a seed.
        gradients: Of one step.
        order: Of the objectives.
        draws: Seeds tried in either order, each once.
    """
    losses, shuffled = losses_of(gradients), gradients[order]
    plain = torch.stack([make(i)(gradients @ gradients.T, losses)[order] for i in range(draws)])
    other = torch.stack([make(draws + i)(shuffled @ shuffled.T, losses[order]) for i in range(draws)])
    error = ((plain.var(0) + other.var(0)) / draws).sqrt()
    assert ((plain.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-6 * plain.abs().max()).all()


def assert_direction_invariant_to_units(weighting: Weighting, gradients: Tensor, scales: Tensor) -> None:
    """Σ w_i g_i is the same when every objective is measured in another positive unit."""
    losses = losses_of(gradients)
    plain = direction(weighting, gradients, losses)
    torch.testing.assert_close(
        direction(weighting, gradients * scales[:, None], losses * scales), plain, rtol=1e-6, atol=1e-9
    )


def assert_direction_proportional_to_common_scale(
    make: Callable[[], Weighting], gradients: Tensor, scale: float
) -> None:
    """Σ w_i g_i is multiplied by c when all gradients are."""
    plain = direction(make(), gradients)
    scaled = direction(make(), gradients * scale) / scale
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-9 * float(gradients.norm()))


def assert_non_conflicting(weighting: Weighting, gradients: Tensor, slack: float = SLACK) -> None:
    """<d, g_i> >= 0 for every objective, on the explicit vectors."""
    weights = weighting(gradients @ gradients.T, losses_of(gradients))
    lengths = gradients.norm(dim=1)
    assert (gradients @ (weights @ gradients) >= -slack * lengths * (weights.abs() @ lengths)).all()


def assert_agrees(ours: Tensor, theirs: Tensor, gradients: Tensor) -> None:
    """Two directions are equal to 1e-6 of their length."""
    bound = 1e-6 * float(theirs.norm()) + 1e-12 * float(gradients.norm())
    assert float((ours - theirs).norm()) <= bound, (ours, theirs)


def assert_resumes(make: Callable[[], Weighting], gradients: list[Tensor]) -> None:
    """A state that went through JSON continues exactly; `reset` begins anew; the name never changes."""

    def run(weighting: Weighting, steps: list[Tensor]) -> list[Tensor]:
        out = []
        for step in steps:
            out.append(weighting(step @ step.T, losses_of(step)))
            if isinstance(weighting, Stateful):
                weighting.observe(losses_of(step))
        return out

    whole, resumed = make(), make()
    name, half = repr(whole), len(gradients) // 2
    first = run(whole, gradients[:half])
    assert isinstance(whole, Stateful)
    assert isinstance(resumed, Stateful)
    resumed.restore(json.loads(json.dumps(whole.state())))
    assert resumed.state() == whole.state()
    second = run(whole, gradients[half:])
    for ours, theirs in zip(run(resumed, gradients[half:]), second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert resumed.state() == whole.state()
    whole.reset()
    for ours, theirs in zip(run(whole, gradients), first + second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert repr(whole) == name


def quadratic(slope: float, curvature: float, rate: float, rise: float = 0.0, rows: int = 3) -> Line:
    """The line that a retain loss L(x) = 2 − slope·x + curvature·x²/2 shows at x = k·rate.

    Args:
        slope: Fall of the loss per unit of x.
        curvature: Second derivative.
        rate: η.
        rise: By how much L(0) stands above the start.
        rows: All alike.
    """

    def loss(k: int) -> Tensor:
        x = k * rate
        return torch.full((rows,), 2 - slope * x + curvature * x * x / 2, dtype=torch.float64)

    return Line(minus=loss(-1), zero=loss(0), plus=loss(1), tokens=torch.ones(rows), start=loss(0) - rise)


def assert_finds_minimum_of_quadratic(rule: StepSize, slope: float, curvature: float, rate: float) -> None:
    """Repeated measurement converges to slope / curvature, the exact minimiser, from any start."""
    for _ in range(40):
        rate = rule(rate, quadratic(slope, curvature, rate)).learning_rate
    assert math.isclose(rate, slope / curvature, rel_tol=1e-4)


def assert_spends_the_budget_on_quadratic(
    rule: WithinBudget, slope: float, curvature: float, rate: float, rise: float
) -> None:
    """Repeated measurement converges to the η whose `every` steps end exactly at the tolerance."""
    for _ in range(40):
        rate = rule(rate, quadratic(slope, curvature, rate, rise)).learning_rate
    x = rule.every * rate
    assert math.isclose(rise - slope * x + curvature * x * x / 2, rule.tolerance, rel_tol=1e-3)
    assert curvature * x >= slope  # beyond the minimum: the largest such step, not the smallest


def assert_positive_and_clipped(rule: StepSize, line: Line, rate: float, clip: tuple[float, float]) -> None:
    proposal = rule(rate, line)
    assert clip[0] * rate * (1 - 1e-12) <= proposal.learning_rate <= clip[1] * rate * (1 + 1e-12)
    assert proposal.learning_rate > 0
    assert proposal.decision


def assert_sane_without_a_minimum_ahead(rule: StepSize, slope: float, bend: float, rate: float) -> None:
    """Concave ground that falls lets η grow; ground that rises, concave or not, never does.

    Args:
        rule: Looks for the lowest retain loss.
        slope: Size of the slope, positive.
        bend: Downward curvature, non-negative; 0 is a straight line.
        rate: η.
    """
    falling = rule(rate, quadratic(slope, -bend, rate)).learning_rate
    rising = rule(rate, quadratic(-slope, -bend, rate)).learning_rate
    assert falling > rate > rising


def assert_only_differences_count(rule: StepSize, line: Line, rate: float, unit: float, shift: float) -> None:
    """The answer depends on differences of losses, in any unit."""

    def moved(values: Tensor) -> Tensor:
        return values * unit + shift

    other = Line(moved(line.minus), moved(line.zero), moved(line.plus), line.tokens)
    assert math.isclose(rule(rate, other).learning_rate, rule(rate, line).learning_rate, rel_tol=1e-6)


def assert_noise_is_weathered(rule: StepSize, best: float, noise: float, probes: int = 200) -> None:
    """On a quadratic whose rows are noisy, η stays near the minimiser and never runs away.

    Args:
        rule: Looks for the lowest retain loss.
        best: The minimiser, slope over curvature, with slope 1.
        noise: Standard deviation of a row's loss at a point, as a share of what a step at `best` changes.
        probes: Measurements in a row, each of 16 rows with noise of its own.
    """
    rows, draw = 16, torch.Generator().manual_seed(0)
    rate, seen = best, []
    for _ in range(probes):
        exact = quadratic(1.0, 1.0 / best, rate, rows=rows)
        points = [
            x + noise * best * torch.randn(rows, generator=draw, dtype=torch.float64)
            for x in (exact.minus, exact.zero, exact.plus)
        ]
        rate = rule(rate, Line(*points, exact.tokens)).learning_rate
        seen.append(rate / best)
    assert 0.8 < sorted(seen)[probes // 2] < 1.25
    assert min(seen) > 1 / 16
    assert max(seen) < 16
