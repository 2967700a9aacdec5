"""Weightings against their equations and the shared laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import IMTLG, MGDA, AlignedMTL, AlignedMTLWeighting, IMTLGWeighting, MGDAWeighting

import contracts
from expunge.weightings import Constant, Normalized, TorchJD

MEASURED = [Normalized(), TorchJD(AlignedMTLWeighting()), TorchJD(MGDAWeighting()), TorchJD(IMTLGWeighting())]
SCALE_FREE = [Normalized()]
NON_CONFLICTING_PAIRS = [Normalized()]


@pytest.mark.parametrize("weighting", MEASURED, ids=repr)
@given(gradients=contracts.jacobians())
@settings(max_examples=30, deadline=None)
def test_weights_are_finite(weighting, gradients):
    contracts.assert_finite_weights(weighting, gradients)


@pytest.mark.parametrize("weighting", [Normalized(), TorchJD(AlignedMTLWeighting())], ids=repr)
@given(data=st.data(), seed=st.integers(0, 1000), m=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_weights_follow_a_permutation(weighting, data, seed, m):
    gradients = contracts.jacobian(seed, m, 12, m, 1.0) / 10
    order = data.draw(st.permutations(range(m)))
    contracts.assert_permutation_equivariant(weighting, gradients, list(order))


@pytest.mark.parametrize("weighting", SCALE_FREE, ids=repr)
@given(gradients=contracts.jacobians(), power=st.integers(-4, 4))
@settings(max_examples=50, deadline=None)
def test_direction_ignores_gradient_scales(weighting, gradients, power):
    scales = 10.0 ** (power * torch.linspace(-1, 1, len(gradients), dtype=torch.float64))
    contracts.assert_direction_invariant_to_gradient_scales(weighting, gradients, scales)


@pytest.mark.parametrize("weighting", NON_CONFLICTING_PAIRS, ids=repr)
@given(gradients=contracts.jacobians(rows=st.just(2)))
@settings(max_examples=50, deadline=None)
def test_pairs_do_not_conflict(weighting, gradients):
    contracts.assert_non_conflicting_pair(weighting, gradients)


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


def test_a_vanished_gradient_gets_no_weight():
    weights = Normalized()(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.zeros(2))
    assert weights.tolist() == [0.0, 0.5]


def test_constant_ignores_the_gradients():
    weights = Constant((1.0, 2.5))(torch.full((2, 2), torch.nan), torch.full((2,), torch.nan))
    assert weights.tolist() == [1.0, 2.5]
    assert not Constant((1.0,)).needs_gramian


@pytest.mark.parametrize(
    ("weighting", "aggregator"),
    [(AlignedMTLWeighting(), AlignedMTL()), (MGDAWeighting(), MGDA()), (IMTLGWeighting(), IMTLG())],
    ids=repr,
)
def test_torchjd_through_the_gramian_equals_its_aggregator_on_the_jacobian(weighting, aggregator):
    gradients = contracts.jacobian(3, 3, 12, 3, 1.0) / 100
    ours = TorchJD(weighting)(gradients @ gradients.T, torch.zeros(3)) @ gradients
    torch.testing.assert_close(ours, aggregator(gradients), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", [(), (float("nan"),), (float("inf"), 1.0)])
def test_constant_refuses_what_is_not_a_number(weights):
    with pytest.raises(ValueError, match="one finite number per objective"):
        Constant(weights)


def test_constant_refuses_the_wrong_count():
    with pytest.raises(ValueError, match=r"one entry per objective \(3\)"):
        Constant((1.0, 2.0))(torch.eye(3), torch.zeros(3))
