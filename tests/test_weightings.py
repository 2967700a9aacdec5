"""Weightings against their equations and the shared laws."""

from __future__ import annotations

import doctest
import functools
import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor
from torchjd import aggregation

import contracts
from expunge.errors import UsageError
from expunge.weightings import (
    TORCHJD,
    WEIGHTINGS,
    BiLevel,
    Constant,
    DualAscent,
    DualSpaceMGDA,
    LossNormalized,
    MinNorm,
    Normalized,
    Stateful,
    TorchJD,
    Weighting,
)

MODULES = ["bi_level", "constant", "dual_ascent", "dual_space", "min_norm", "normalized", "torchjd"]

# How to build the weighting of that name for m objectives. Adding one to the suite is adding a line.
MAKE: dict[str, Callable[[int], Weighting]] = {
    "constant": lambda m: Constant(tuple(float(i + 1) for i in range(m))),
    "normalized": lambda m: Normalized(),
    "loss-normalized": lambda m: LossNormalized(),
    "dual-space-mgda": lambda m: DualSpaceMGDA(),
    "bi-level": lambda m: BiLevel(count=max(m, 2)),
    "dual-ascent": lambda m: DualAscent((1.0,) * m, (None,) * (m - 1) + (0.5,), rate=0.1, warmup=1),
    "min-norm": lambda m: MinNorm(),
    **{name: (lambda m, make=make: make()) for name, make in TORCHJD.items()},
}
# Those whose arguments say something of single objectives, with arguments for objectives in another order.
REORDERED: dict[str, Callable[[list[int]], Weighting]] = {
    "constant": lambda order: Constant(tuple(float(i + 1) for i in order)),
    "bi-level": lambda order: BiLevel(lower=order.index(0), count=max(len(order), 2)),
    "dual-ascent": lambda order: DualAscent(
        tuple(float(i + 1) for i in order), tuple(0.5 * i if i else 0.1 for i in order), rate=0.1
    ),
}
DRAWN = ["random", "pcgrad", "gradvac"]
FIRST_IS_SPECIAL = ["pcd"]
SOLVED_TO = {"cagrad": 1e-3, "fairgrad": 1e-3}  # tolerances of iterative solvers
UNIT_FREE = [Normalized(tolerance=0.0), LossNormalized()]
HOMOGENEOUS = [DualSpaceMGDA, MinNorm, BiLevel]
NON_CONFLICTING = {"dual-space-mgda": contracts.CANCELLED, "min-norm": contracts.CANCELLED}
NON_CONFLICTING |= {"upgrad": 1e-3, "dualproj": 1e-3}  # regularised by 1e-4 of the longest gradient
FEWEST = {"krum": 3}


def weighting_of(name: str, m: int) -> Weighting:
    """As registered; skips where an optional dependency of TorchJD is missing."""
    try:
        return MAKE[name](m)
    except UsageError as missing:
        pytest.skip(str(missing))


def aggregator_of(name: str, m: int) -> aggregation.Aggregator:
    """TorchJD's own aggregator with the settings of our constructor."""
    if name == "cr-mogm":
        return aggregation.GramianWeightedAggregator(aggregation.CRMOGMWeighting(aggregation.MGDAWeighting()))
    if name == "nash-mtl":
        return aggregation.NashMTL(m)
    weighting = weighting_of(name, m)
    assert isinstance(weighting, TorchJD)
    settings = {"cagrad": {"c": 0.5}, "fairgrad": {"alpha": 2.0}, "krum": {"n_byzantine": 0}}.get(name, {})
    return getattr(aggregation, type(weighting.weighting).__name__.removesuffix("Weighting"))(**settings)


def min_norm_oracle(gradients: Tensor) -> Tensor:
    """The shortest convex combination by non-negative least squares on the explicit vectors."""
    rows = gradients.numpy()
    unit = np.linalg.norm(rows, axis=1).min()  # in units of the shortest row the penalty row weighs alike
    system = np.vstack([rows.T / unit, np.ones(len(rows))])
    found, _ = nnls(system, np.append(np.zeros(rows.shape[1]), 1.0))
    return torch.tensor(found / found.sum() @ rows)


def test_every_registered_weighting_is_in_the_suite():
    assert set(MAKE) == set(WEIGHTINGS)
    assert all((make.__doc__ or "").strip() for make in WEIGHTINGS.values())


def test_all_that_a_gramian_is_enough_for_is_registered():
    """A new release of TorchJD with another weighting fails here, and gets a line or a reason."""
    unfit = {"MoDoWeighting", "SDMGradWeighting", "ExcessMTLWeighting", "Weighting", "ConstantWeighting"}
    public = {name for name in aggregation.__all__ if name.endswith("Weighting")} - unfit
    named = {make.__name__ for make in TORCHJD.values()}
    assert public - {"CRMOGMWeighting"} == named - {"NashMTL", "_cr_mogm"}


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("upgrad", "quadprog-projector"),
        ("dualproj", "quadprog-projector"),
        ("cagrad", "cagrad"),
        ("nash-mtl", "nash-mtl"),
    ],
)
def test_a_missing_solver_is_the_users_to_mend(name, extra, monkeypatch):
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=rf'pip install "torchjd\[{extra}\]"'):
        TORCHJD[name]()


@pytest.mark.parametrize("name", MAKE)
@given(gradients=contracts.jacobians())
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_are_finite(name, gradients):
    if len(gradients) >= FEWEST.get(name, 1):
        contracts.assert_finite_weights(weighting_of(name, len(gradients)), gradients)


@pytest.mark.parametrize("name", [name for name in MAKE if name not in (*DRAWN, "nash-mtl")])
@given(data=st.data(), seed=st.integers(0, 1000), m=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_follow_a_permutation(name, data, seed, m):
    if m <= FEWEST.get(name, 0):  # at the least number, the two nearest are equally near
        return
    gradients = contracts.jacobian(seed, m, 12, m, 1.0) / 10
    held = 1 if name in FIRST_IS_SPECIAL else 0
    order = [*range(held), *data.draw(st.permutations(range(held, m)))]
    make = REORDERED.get(name, lambda _: weighting_of(name, m))
    contracts.assert_permutation_equivariant(make, gradients, order, SOLVED_TO.get(name, 1e-6))


@pytest.mark.parametrize("order", [[0], [1, 0], [2, 0, 1]])
def test_a_bargain_follows_a_permutation(order):
    """As above, on few matrices: a solution takes a tenth of a second and more."""
    gradients = contracts.jacobian(3, len(order), 12, len(order), 1.0) / 10
    contracts.assert_permutation_equivariant(lambda _: weighting_of("nash-mtl", 3), gradients, order, 1e-3)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("order", [[1, 0], [2, 0, 3, 1]])
def test_drawn_weights_follow_a_permutation_on_average(name, order):
    gradients = contracts.jacobian(2, len(order), 12, len(order), 1.0)
    gradients = gradients - gradients.mean(0)  # some must conflict
    contracts.assert_permutation_equivariant_on_average(lambda i: TORCHJD[name](seed=i), gradients, order)


def test_a_weighting_that_goes_by_position_breaks_the_law():
    gradients = contracts.jacobian(1, 3, 12, 3, 1.0)
    by_position, order = Constant((1.0, 2.0, 3.0)), [2, 0, 1]
    with pytest.raises(AssertionError):
        contracts.assert_permutation_equivariant(lambda _: by_position, gradients, order)
    with pytest.raises(AssertionError):
        contracts.assert_permutation_equivariant_on_average(lambda _: by_position, gradients, order)


@pytest.mark.parametrize("weighting", UNIT_FREE, ids=repr)
@given(gradients=contracts.jacobians(decades=6), power=st.integers(-4, 4))
@settings(max_examples=50, deadline=None)
def test_direction_ignores_units(weighting, gradients, power):
    scales = 10.0 ** (power * torch.linspace(-1, 1, len(gradients), dtype=torch.float64))
    if isinstance(weighting, Normalized) or float(gradients.norm()) < 1e6:  # 1e-9 is absolute there
        contracts.assert_direction_invariant_to_units(weighting, gradients, scales)


@pytest.mark.parametrize("kind", HOMOGENEOUS)
@given(gradients=contracts.jacobians(st.integers(2, 5), decades=0), power=st.integers(-8, 8))
@settings(max_examples=50, deadline=None)
def test_direction_has_the_scale_of_the_gradients(kind, gradients, power):
    make = functools.partial(kind, count=len(gradients)) if kind is BiLevel else kind
    contracts.assert_direction_proportional_to_common_scale(make, gradients, 10.0**power)


@pytest.mark.parametrize(("name", "slack"), NON_CONFLICTING.items())
@given(gradients=contracts.jacobians())
@settings(max_examples=60, deadline=None)
def test_no_objective_is_hurt(name, slack, gradients):
    if slack > contracts.CANCELLED:
        gradients = torch.nn.functional.normalize(gradients, dim=1)
    contracts.assert_non_conflicting(weighting_of(name, len(gradients)), gradients, slack)


@given(gradients=contracts.jacobians(rows=st.just(2)))
@settings(max_examples=60, deadline=None)
def test_pairs_of_unit_gradients_do_not_conflict(gradients):
    contracts.assert_non_conflicting(Normalized(), gradients)


@given(pair=contracts.jacobians(rows=st.just(2)))
@settings(max_examples=60, deadline=None)
def test_ngdiff_lowers_retain_and_raises_forget(pair):
    """⟨d, g_R⟩ >= 0 >= ⟨d, ∇L_F⟩ with the gradient of the forget NLL itself, not of the objective."""
    forget, retain = pair
    step = contracts.direction(Normalized(), torch.stack([-forget, retain]))
    assert retain @ step >= -4e-16 * retain.norm() * 12
    assert forget @ step <= 4e-16 * forget.norm() * 12


def test_ngdiff_is_the_difference_of_unit_gradients():
    """Golden: with g_F the gradient of the forget NLL, d = g_R/|g_R| − g_F/|g_F| (arXiv 2410.22086)."""
    forget, retain = (
        torch.tensor([3.0, 4.0], dtype=torch.float64),
        torch.tensor([0.0, 2.0], dtype=torch.float64),
    )
    objectives = torch.stack([-forget, retain])  # ascent on forget, descent on retain
    direction = Normalized()(objectives @ objectives.T, torch.zeros(2)) @ objectives
    torch.testing.assert_close(direction, torch.tensor([-0.6, 0.2], dtype=torch.float64))
    cosine = forget @ retain / (forget.norm() * retain.norm())
    torch.testing.assert_close(direction @ retain, retain.norm() * (1 - cosine))
    torch.testing.assert_close(direction @ forget, -forget.norm() * (1 - cosine))


@given(gradients=contracts.jacobians(decades=6), power=st.integers(-2, 2))
@settings(max_examples=50, deadline=None)
def test_ngdiff_ignores_units_as_far_as_its_precision(gradients, power):
    scales = 10.0 ** (power * torch.linspace(-1, 1, len(gradients), dtype=torch.float64))
    lengths = torch.stack([gradients.norm(dim=1), gradients.norm(dim=1) * scales])
    if float((lengths.amax(1) / lengths.amin(1).clamp_min(1e-300)).max()) < 1e6:
        contracts.assert_direction_invariant_to_units(Normalized(), gradients, scales)


def test_rounding_is_not_brought_to_unit_length():
    gramian = torch.diag(torch.tensor([1e-14, 1.0, 4.0], dtype=torch.float64))  # 1e-7 of the others
    assert Normalized()(gramian, torch.zeros(3)).tolist() == [0.0, 1.0, 0.5]
    assert Normalized(tolerance=0.0)(gramian, torch.zeros(3))[0] == pytest.approx(1e7)
    with pytest.raises(ValueError, match="`tolerance` must be at least 0 and below 1; got 1"):
        Normalized(tolerance=1.0)


def test_a_vanished_gradient_or_loss_gets_no_weight():
    assert Normalized()(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.zeros(2)).tolist() == [0.0, 0.5]
    assert LossNormalized()(torch.eye(2), torch.tensor([0.0, -4.0])).tolist() == [0.0, 0.25]


def test_what_is_not_finite_stays_visible():
    assert LossNormalized()(torch.eye(2), torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]
    broken = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]])
    for weighting in (Normalized(), MinNorm(), DualSpaceMGDA()):
        assert weighting(broken, torch.ones(2)).isnan().any()


@given(gradients=contracts.jacobians(full_rank=True))
@settings(max_examples=60, deadline=None)
def test_min_norm_is_the_shortest_convex_combination(gradients):
    weights = MinNorm()(gradients @ gradients.T, torch.ones(len(gradients)))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    contracts.assert_agrees(weights @ gradients, min_norm_oracle(gradients), gradients)


@pytest.mark.parametrize("m", [8, 9, 12])
def test_min_norm_beyond_exact_size_stays_near(m):
    gradients = contracts.jacobian(5, m, 20, m, 1.0)
    ours, oracle = contracts.direction(MinNorm(), gradients), min_norm_oracle(gradients)
    torch.testing.assert_close(ours, oracle, rtol=0, atol=(1e-9 if m <= 8 else 0.05) * float(oracle.norm()))


@given(gradients=contracts.jacobians(full_rank=True))
@settings(max_examples=60, deadline=None)
def test_dual_space_is_mgda_on_what_no_other_gradient_shares(gradients):
    """From the explicit vectors: residuals of least squares, then their shortest convex combination."""
    parts = []
    for i, row in enumerate(gradients):
        others = torch.cat([gradients[:i], gradients[i + 1 :]])
        basis = torch.linalg.qr(others.T).Q
        for _ in range(2):  # twice is enough: orthogonal to rounding
            row = row - basis @ (basis.T @ row)
        parts.append(row)
    weighting = DualSpaceMGDA()
    ours = contracts.direction(weighting, gradients)
    if weighting.fallbacks == 0:
        contracts.assert_non_conflicting(weighting, gradients)
        oracle = min_norm_oracle(torch.stack(parts))
        assert float((ours - oracle).norm()) <= 1e-6 * float(oracle.norm())


@pytest.mark.parametrize("factor", [1.0, -1.0, 1e-4, -1e4])
def test_dependent_gradients_fall_back_to_plain_mgda_and_are_counted(factor):
    first = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    gradients = torch.stack([first, factor * first])
    weighting = DualSpaceMGDA()
    ours = contracts.direction(weighting, gradients)
    assert weighting.state() == {"fallbacks": 1.0}
    expected = torch.zeros(3, dtype=torch.float64) if factor < 0 else first * min(1.0, factor)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    weighting.reset()
    assert weighting.state() == {"fallbacks": 0.0}


def test_a_vanished_gradient_does_not_stop_dual_space():
    gramian = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    weighting = DualSpaceMGDA()
    torch.testing.assert_close(
        weighting(gramian, torch.zeros(3)), torch.tensor([0.0, 0.75, 0.25], dtype=torch.float64)
    )
    assert weighting.fallbacks == 0
    assert weighting(torch.zeros(2, 2), torch.zeros(2)).tolist() == [0.0, 0.0]


def test_a_gradient_of_rounding_does_not_take_over_dual_space():
    """At the start of MOLLM the divergence's gradient is 1e-8 of the others': noise, not an objective."""
    noise = torch.tensor([0.0, 1e-8, 0.0], dtype=torch.float64)
    gradients = torch.stack([torch.eye(3, dtype=torch.float64)[0], noise, torch.tensor([0.0, 0.0, 2.0])])
    weighting = DualSpaceMGDA()
    weights = weighting(gradients @ gradients.T, torch.zeros(3))
    torch.testing.assert_close(weights, torch.tensor([0.8, 0.0, 0.2], dtype=torch.float64))
    gradients[1] *= 1e4  # an objective, if a short one
    assert weighting(gradients @ gradients.T, torch.zeros(3))[1] > 0.99


@given(gradients=contracts.jacobians(st.integers(2, 5)), gamma=st.floats(0, 10), data=st.data())
@settings(max_examples=60, deadline=None)
def test_bi_level_leaves_exactly_gamma_of_the_lower_gradient(gradients, gamma, data):
    """<d, g_L> = γ|g_L|², and what is orthogonal to g_L is the upper level's, untouched."""
    m = len(gradients)
    lower = data.draw(st.integers(0, m - 1))
    weights = BiLevel(lower, gamma, m)(gradients @ gradients.T, torch.ones(m))
    step, first = weights @ gradients, gradients[lower]
    upper = gradients.sum(0) - first
    slack = 1e-11 * first.norm() * (weights.abs() @ gradients.norm(dim=1))
    assert abs(step @ first - gamma * first @ first) <= slack
    if first.norm() > 0:
        unit = first / first.norm()
        rest = (step - unit * (unit @ step)) - (upper - unit * (unit @ upper))
        assert rest.norm() <= 1e-11 * (weights.abs() @ gradients.norm(dim=1))


def test_bi_level_without_its_lower_objective_only_repairs():
    assert BiLevel(count=3)(torch.eye(2), torch.zeros(2)).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"number of objectives \(3\)"):
        BiLevel(count=2)(torch.eye(3), torch.zeros(3))


def test_dual_ascent_moves_once_per_step_and_never_below_zero():
    """Golden, by hand: λ ← max(0, λ + ρ(L − ε)), after one step of warm-up."""
    weighting = DualAscent((1.0, 2.0), (None, 0.5), rate=10.0, warmup=1)
    seen = []
    for retain in (9.0, 0.75, 0.75, 0.0, 0.0, 0.6):
        for _ in range(3):  # micro-batches ask, and change nothing
            seen.append(weighting(torch.zeros(2, 2), torch.zeros(2))[1].item())
        weighting.observe(torch.tensor([-3.0, retain], dtype=torch.float64))
    assert seen[::3] == seen[1::3] == seen[2::3] == [2.0, 2.0, 4.5, 7.0, 2.0, 0.0]
    assert weighting.state() == {"steps": 6.0, "dual.1": pytest.approx(1.0)}
    weighting.observe(torch.tensor([torch.nan, 5.0]))
    assert weighting.state()["dual.1"] == pytest.approx(1.0)


def test_dual_ascent_finds_the_multiplier():
    """min (x − 2)² subject to x² <= 1: x = 1, λ = 1."""
    weighting, x = DualAscent((1.0, 0.0), (None, 1.0), rate=0.1), torch.tensor(0.0, dtype=torch.float64)
    for _ in range(2000):
        losses, slopes = torch.stack([(x - 2) ** 2, x**2]), torch.stack([2 * (x - 2), 2 * x])
        x = x - 0.05 * weighting(torch.zeros(2, 2), losses) @ slopes
        weighting.observe(losses)
    assert x.item() == pytest.approx(1, abs=1e-6)
    assert weighting.state()["dual.1"] == pytest.approx(1, abs=1e-6)


def test_constant_ignores_the_gradients():
    weights = Constant((1.0, 2.5))(torch.full((2, 2), torch.nan), torch.full((2,), torch.nan))
    assert weights.tolist() == [1.0, 2.5]
    assert not Constant((1.0,)).needs_gramian


@pytest.mark.parametrize("name", list(TORCHJD))
@given(gradients=contracts.jacobians(st.integers(2, 5), decades=2))
@settings(max_examples=20, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchjd_through_the_gramian_equals_its_aggregator_on_the_jacobian(name, gradients):
    m = len(gradients)
    dependent = int(torch.linalg.matrix_rank(gradients)) < m
    if m < FEWEST.get(name, 1) or (name == "nash-mtl" and dependent):  # a bargain that has no solution
        return
    weighting = weighting_of(name, m)
    ours = contracts.direction(weighting, gradients)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the seed of the first call
        theirs = aggregator_of(name, m)(gradients)
    contracts.assert_agrees(ours, theirs, gradients)


def test_torchjds_constant_is_ours():
    gradients = contracts.jacobian(1, 3, 12, 3, 1.0)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        contracts.direction(Constant((1.0, 2.0, 3.0)), gradients), aggregation.Constant(weights)(gradients)
    )


@pytest.mark.parametrize("name", ["random", "pcgrad", "gradvac"])
def test_random_choices_are_the_same_everywhere_and_leave_the_run_alone(name):
    gradients = contracts.jacobian(2, 4, 12, 4, 1.0)
    gradients = gradients - gradients.mean(0)  # some must conflict
    gramian = gradients @ gradients.T
    weighting, other_rank = TORCHJD[name](seed=7), TORCHJD[name](seed=7)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = [weighting(gramian, torch.zeros(4)).tolist() for _ in range(3)]
    assert torch.equal(torch.rand(3), expected)
    assert [other_rank(gramian, torch.zeros(4)).tolist() for _ in range(3)] == first
    assert first[0] != first[1]


STATELESS = {"constant", "normalized", "loss-normalized", "bi-level", "min-norm"}
"""Weightings whose next weights do not depend on earlier steps; all others keep a state."""


@pytest.mark.parametrize("name", MAKE)
def test_what_remembers_steps_says_so(name):
    assert isinstance(weighting_of(name, 3), Stateful) == (name not in STATELESS)


@pytest.mark.parametrize("name", [name for name in MAKE if name not in STATELESS])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stateful_weightings_resume_exactly(name):
    steps = [contracts.jacobian(seed, 3, 12, 3, 0.01) for seed in range(8)]
    contracts.assert_resumes(lambda: weighting_of(name, 3), steps)


@pytest.mark.parametrize("name", [name for name in ("pcd", "cr-mogm", "nash-mtl") if name in MAKE])
def test_a_step_with_fewer_objectives_leaves_the_memory_alone(name):
    weighting = weighting_of(name, 3)
    gradients = contracts.jacobian(3, 3, 12, 3, 0.01)
    weighting(gradients @ gradients.T, torch.ones(3))
    assert isinstance(weighting, Stateful)
    before = weighting.state() | {"calls": 0.0}
    for m in (1, 2):
        contracts.assert_finite_weights(weighting, gradients[:m])
    assert weighting.state() | {"calls": 0.0} == before


@pytest.mark.parametrize(
    "make",
    [
        TORCHJD["krum"],
        lambda: TorchJD(aggregation.AlignedMTLWeighting(pref_vector=torch.tensor([1.0, 2.0, 3.0]).double())),
        TORCHJD["pcd"],
    ],
)
def test_a_step_with_fewer_objectives_than_a_weighting_is_for_counts_them_alike(make):
    """As repair steps are, be they the first of the run; the others answer for themselves."""
    gradients = contracts.jacobian(3, 3, 12, 3, 0.01)
    expected, weighting = make()(gradients @ gradients.T, torch.ones(3)), make()
    for m in (1, 2):
        part = gradients[:m]
        weights = weighting(part @ part.T, torch.ones(m))
        try:
            make().check(m)
        except ValueError:
            assert weights.tolist() == [1 / m] * m
    for _ in range(2):
        torch.testing.assert_close(make()(gradients @ gradients.T, torch.ones(3)), expected)
    torch.testing.assert_close(weighting(gradients @ gradients.T, torch.ones(3)), expected)
    assert weighting(gradients[:1] @ gradients[:1].T, torch.ones(1)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("weighting", "state"),
    [
        (DualSpaceMGDA(), {"calls": 1.0}),
        (DualAscent((1.0, 1.0), (None, 0.1)), {"steps": 1.0}),
        (TorchJD(aggregation.MeanWeighting()), {"fallbacks": 0.0}),
    ],
    ids=repr,
)
def test_the_state_of_another_weighting_is_refused(weighting, state):
    with pytest.raises(ValueError, match="saved by another weighting"):
        weighting.restore(state)


@pytest.mark.parametrize("weights", [(), (float("nan"),), (float("inf"), 1.0)])
def test_constant_refuses_what_is_not_a_number(weights):
    with pytest.raises(ValueError, match="one finite number per objective"):
        Constant(weights)


@pytest.mark.parametrize("weighting", [Constant((1.0, 2.0)), DualAscent((1.0, 2.0), (None, 0.1))], ids=repr)
def test_given_weights_refuse_the_wrong_count(weighting):
    with pytest.raises(ValueError, match=r"one entry per objective \(3\)"):
        weighting(torch.eye(3), torch.zeros(3))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (BiLevel, {"gamma": -1.0}),
        (BiLevel, {"lower": 2}),
        (BiLevel, {"count": 1}),
        (DualSpaceMGDA, {"tolerance": 0.0}),
        (DualAscent, {"weights": (1.0,), "bounds": (None,)}),
        (DualAscent, {"weights": (1.0, 1.0), "bounds": (0.1,)}),
        (DualAscent, {"weights": (1.0, -1.0), "bounds": (None, 0.1)}),
        (DualAscent, {"weights": (1.0, 1.0), "bounds": (None, 0.1), "rate": 0.0}),
        (DualAscent, {"weights": (1.0, 1.0), "bounds": (None, 0.1), "warmup": -1}),
    ],
)
def test_bad_arguments(kind, arguments):
    with pytest.raises(ValueError, match="must"):
        kind(**arguments)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"expunge.weightings.{module}")).failed == 0
