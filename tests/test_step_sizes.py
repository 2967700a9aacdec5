"""Step-size rules: exact on quadratics, positive, clipped, and their stated policies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import contracts
from expunge.step_sizes import GeN, Line, standard_error, weighted_mean

RULES = [GeN(), GeN(significance=2.0), GeN(clip=(0.1, 10.0))]


def line(minus: float, zero: float, plus: float) -> Line:
    ones = torch.ones(1)
    return Line(minus=ones * minus, zero=ones * zero, plus=ones * plus, tokens=ones)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(
    slope=st.floats(1e-3, 1e3),
    minimum=st.floats(1e-7, 1e-3),
    start=st.floats(-2, 2),
)
def test_quadratics_are_solved(rule, slope, minimum, start):
    contracts.assert_finds_minimum_of_quadratic(rule, slope, slope / minimum, minimum * 10**start)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(values=st.tuples(*[st.floats(-1e3, 1e3)] * 3), rate=st.floats(1e-9, 1.0))
def test_answers_are_positive_and_clipped(rule, values, rate):
    contracts.assert_positive_and_clipped(rule, line(*values), rate, rule.clip)


def test_closed_form_survives_tiny_rates():
    """A curve fitter returns garbage at η = 1e-6; the closed form is exact to rounding."""
    proposal = GeN()(1e-6, contracts.quadratic(slope=2.0, curvature=2.0 / 1.5e-6, rate=1e-6))
    assert math.isclose(proposal.learning_rate, 1.5e-6, rel_tol=1e-6)


def test_rejected_fits_have_a_policy():
    """The naive version leaves η where it was for all three."""
    assert GeN()(1.0, line(0.9, 1.0, 1.3)) == (0.5, "shrink: a <= 0")
    assert GeN()(1.0, line(1.1, 1.0, 0.8)) == (2.0, "grow: b <= 0")
    assert GeN()(1.0, line(math.nan, 1.0, 0.8)).learning_rate == 0.5


def test_eta_moves_tenfold_within_four_probes():
    rate, rule = 1e-6, GeN()
    for _ in range(4):
        rate = rule(rate, contracts.quadratic(1.0, 1.0 / 1e-5, rate)).learning_rate
    assert math.isclose(rate, 1e-5, rel_tol=1e-6)


def test_an_unresolved_slope_changes_nothing():
    noisy = Line(
        minus=torch.tensor([1.0, 2.0, 3.0]),
        zero=torch.tensor([1.0, 2.0, 3.0]),
        plus=torch.tensor([2.0, 1.0, 2.99]),
        tokens=torch.ones(3),
    )
    assert noisy.slope > 0
    assert GeN(significance=2.0)(1e-5, noisy) == (1e-5, "keep: slope not resolved")
    assert GeN(significance=0.0)(1e-5, noisy).learning_rate != 1e-5


def test_rows_count_by_their_tokens():
    values, tokens = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])
    assert weighted_mean(values, tokens) == 7 / 4


def test_standard_error_of_equal_rows_is_the_textbook_one():
    values = torch.tensor([1.0, 2.0, 4.0, 7.0], dtype=torch.float64)
    expected = float(values.std(unbiased=True)) / 2
    assert math.isclose(standard_error(values, torch.ones(4)), expected, rel_tol=1e-12)
    assert standard_error(values[:1], torch.ones(1)) == math.inf


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"clip": (0.0, 2.0)}, {"clip": (1.5, 2.0)}, {"clip": (0.5, 0.9)}]
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must"):
        GeN(**arguments)
