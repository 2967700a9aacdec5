"""Step-size rules: exact on quadratics, positive, clipped, and their stated policies."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import contracts
from expunge import step_sizes
from expunge.step_sizes import GeN, Line, WithinBudget, largest_within, standard_error, weighted_mean

RULES = [GeN(), GeN(significance=2.0), GeN(clip=(0.1, 10.0))]
BUDGETS = [
    WithinBudget(),
    WithinBudget(every=1),
    WithinBudget(0.5, clip=(0.1, 10.0), significance=0.0),
    WithinBudget(repairs=True),
]


def line(minus: float, zero: float, plus: float, start: float | None = None) -> Line:
    ones = torch.ones(2, dtype=torch.float64)
    return Line(
        minus=ones * minus,
        zero=ones * zero,
        plus=ones * plus,
        tokens=ones,
        start=ones * (zero if start is None else start),
    )


def noisy(line: Line, noise: float) -> Line:
    """The same means over rows; the slope's standard error is `noise`."""
    spread = torch.tensor([1.0, -1.0], dtype=torch.float64) * noise
    return Line(line.minus + spread, line.zero, line.plus - spread, line.tokens, line.start)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=30)
@given(
    slope=st.floats(1e-3, 1e3),
    minimum=st.floats(1e-7, 1e-3),
    start=st.floats(-2, 2),
)
def test_quadratics_are_solved(rule, slope, minimum, start):
    contracts.assert_finds_minimum_of_quadratic(rule, slope, slope / minimum, minimum * 10**start)


@pytest.mark.parametrize("rule", RULES + BUDGETS, ids=repr)
@given(values=st.tuples(*[st.floats(-1e3, 1e3)] * 4), rate=st.floats(1e-9, 1.0))
def test_answers_are_positive_and_clipped(rule, values, rate):
    contracts.assert_positive_and_clipped(rule, line(*values), rate, rule.clip)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(slope=st.floats(1e-3, 1e3), bend=st.just(0.0) | st.floats(1e-3, 1e3), rate=st.floats(1e-6, 1e-2))
def test_concave_and_straight_ground(rule, slope, bend, rate):
    contracts.assert_sane_without_a_minimum_ahead(rule, slope, bend, rate)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(
    slope=st.floats(-1.0, 1.0).filter(lambda a: abs(a) > 1e-3),
    curvature=st.floats(-10.0, 10.0).filter(lambda b: abs(b) > 1e-2),
    unit=st.floats(0.1, 10.0),
    shift=st.floats(-5.0, 5.0),
)
def test_only_differences_of_losses_count(rule, slope, curvature, unit, shift):
    contracts.assert_only_differences_count(
        rule, contracts.quadratic(slope, curvature, 0.1), 0.1, unit, shift
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_noisy_rows(rule, noise):
    contracts.assert_noise_is_weathered(rule, 1e-5, noise)


def test_closed_form_survives_tiny_rates():
    """A curve fitter returns garbage at η = 1e-6; the closed form is exact to rounding."""
    proposal = GeN()(1e-6, contracts.quadratic(slope=2.0, curvature=2.0 / 1.5e-6, rate=1e-6))
    assert math.isclose(proposal.learning_rate, 1.5e-6, rel_tol=1e-6)


def test_rejected_fits_have_a_policy():
    """The naive version leaves η where it was for all three."""
    assert GeN()(1.0, line(0.9, 1.0, 1.3)) == (0.5, "shrink: a <= 0")
    assert GeN()(1.0, line(1.1, 1.0, 0.8)) == (2.0, "grow: b <= 0")
    assert GeN()(1.0, line(math.nan, 1.0, 0.8)).learning_rate == 0.5


def test_flat_ground_shrinks_the_published_rule_and_its_noise_may_be_ignored():
    assert GeN()(1.0, line(1.0, 1.0, 1.0)) == (0.5, "shrink: a <= 0")
    assert GeN(significance=2.0)(1.0, noisy(line(1.0, 1.0, 1.0), 0.1)) == (1.0, "keep: slope not resolved")


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


@pytest.mark.parametrize("rule", BUDGETS, ids=repr)
@settings(max_examples=30)
@given(
    slope=st.floats(-1e3, 1e3),
    minimum=st.floats(1e-7, 1e-3),
    start=st.floats(-2, 2),
    spent=st.floats(-2, 0.9),
)
def test_the_budget_is_spent_exactly_on_quadratics(rule, slope, minimum, start, spent):
    slope = slope if abs(slope) > 1e-3 else 1.0
    rate, curvature = minimum * 10**start, abs(slope) / minimum
    contracts.assert_spends_the_budget_on_quadratic(rule, slope, curvature, rate, spent * rule.tolerance)


@given(
    slope=st.floats(-10, 10), curvature=st.floats(-10, 10), room=st.floats(0, 10), shorter=st.floats(0.01, 1)
)
def test_the_largest_step_is_within_and_no_larger_one_is(slope, curvature, room, shorter):
    """On concave parabolas the tangent answers, which is within; steps between 0 and k are within as well."""

    def change(k: float) -> float:
        return -slope * k + curvature * k * k / 2

    k = largest_within(slope, curvature, room)
    assert k >= 0
    if math.isinf(k):
        assert slope > -1e-300  # nothing but rounding to infinity
        assert curvature < 1e-300
        return
    slack = 1e-9 * (1 + abs(slope * k) + abs(curvature * k * k))
    assert change(k) <= room + slack
    assert change(shorter * k) <= room + slack
    if curvature > 0:
        assert change(k * 1.01 + 1e-9) >= room - slack


def test_the_budget_counts_from_the_start_and_not_from_the_last_probe():
    """Golden, by hand: room 0.02, a = −0.01, b = 0.02, so k = (−0.01 + √(0.0001 + 0.0008)) / 0.02 = 1."""
    rule = WithinBudget(tolerance=0.03, every=1)
    assert rule(1e-4, line(1.0, 1.0, 1.02, start=0.99)).learning_rate == pytest.approx(1e-4)
    rate = 1e-4
    for level in (1.0, 1.01, 1.02, 1.029):  # damage adds up: the room shrinks
        last, rate = rate, rule(1e-4, line(level + 0.01, level, level + 0.01, start=1.0)).learning_rate
        assert rate < last or last == 1e-4
    shared = WithinBudget(tolerance=0.03, every=4)
    assert shared(1e-4, line(1.0, 1.0, 1.02, start=0.99)).learning_rate == pytest.approx(
        0.5e-4
    )  # clipped 1/4


def test_over_budget_eta_shrinks_unless_the_method_repairs():
    rule = WithinBudget(tolerance=0.02, every=1)
    worse, better = line(0.99, 1.0, 1.03, start=0.9), line(1.03, 1.0, 0.99, start=0.9)
    assert rule(1e-4, worse) == (0.5e-4, "shrink: over budget")
    assert replace(rule, repairs=True)(1e-4, worse) == (1e-4, "keep: over budget")
    assert rule(1e-4, better) == (pytest.approx(1e-4), "repair")  # a = b: the minimum is at k = 1
    falling = line(1.1, 1.0, 0.9, start=0.9)
    assert rule(1e-4, falling) == (2e-4, "repair, clipped")


@pytest.mark.parametrize("every", [1, 5])
@given(start=st.floats(1.0, 3.0), push=st.floats(0.1, 10.0), rate=st.floats(1e-3, 0.1))
def test_a_run_over_budget_loses_no_more_than_a_few_steps_do(every, start, push, rate):
    """Steps along the rise of the loss 2 + x²/2, from beyond the budget: they die away, or go on."""

    def ends(repairs: bool) -> float:
        rule, x, rate_now = WithinBudget(tolerance=0.02, every=every, repairs=repairs), start, rate
        for step in range(200):
            if step % every == 0:
                seen = contracts.quadratic(-push * x, push * push, rate_now, rise=x * x / 2)
                rate_now = rule(rate_now, seen).learning_rate
            x += push * rate_now
        return x

    few = push * rate * every * (1 + 1e-9)  # (1/2 + 1/4 + ...) times `every` steps
    assert ends(repairs=False) <= start + few
    assert ends(repairs=True) == pytest.approx(start + 200 * push * rate)


@settings(max_examples=30)
@given(power=st.floats(-4, 0), slope=st.floats(-5, -0.1))
def test_the_answer_does_not_depend_on_the_rate_it_is_measured_at(power, slope):
    """Noise that scales with η, as that of paired differences does, never starves the rule."""
    rule, rate = WithinBudget(every=1), 10**power

    def answer(rate: float) -> float:
        for _ in range(20):
            measured = noisy(contracts.quadratic(slope, 3.0, rate, rows=2), abs(slope) * rate)
            rate = rule(rate, measured).learning_rate
        return rate

    assert math.isclose(answer(rate), answer(1.0), rel_tol=1e-3)


@given(values=st.tuples(*[st.floats(-1, 1)] * 3), noise=st.floats(0, 1), more=st.floats(0, 1))
def test_noise_only_shortens_steps(values, noise, more):
    measured, rule = line(*values), WithinBudget(0.5, clip=(1e-6, 1e6))
    quiet, loud = (rule(1.0, noisy(measured, n)).learning_rate for n in (noise, noise + more))
    assert loud <= quiet * (1 + 1e-9)


def test_flat_and_concave_ground_is_crossed_faster():
    rule = WithinBudget()
    assert rule(1e-5, line(1.0, 1.0, 1.0)) == (2e-5, "within budget, clipped")
    assert rule(1e-5, line(1.1, 1.0, 0.8)) == (2e-5, "within budget, clipped")
    concave = WithinBudget(0.06, every=1, clip=(0.1, 10.0))
    assert concave(1.0, line(0.9, 1.0, 1.02)).learning_rate == pytest.approx(1.0)  # tangent 0.06 per step


def test_what_cannot_be_judged():
    rule = WithinBudget()
    assert rule(1.0, line(math.nan, 1.0, 0.8)).learning_rate == 0.5
    one = torch.ones(1)
    single = Line(minus=one, zero=one, plus=one, tokens=one, start=one)
    assert rule(1.0, single) == (1.0, "keep: slope not resolved")
    with pytest.raises(ValueError, match="`start` must hold"):
        rule(1.0, Line(minus=one, zero=one, plus=one, tokens=one))


def test_a_line_over_ranks_keeps_its_start():
    both = line(1.0, 2.0, 3.0, start=0.5).over_ranks(lambda rows: torch.cat([rows, rows]))
    assert both.start is not None
    assert len(both.start) == len(both.zero) == 4
    assert both.rise == 1.5


@pytest.mark.parametrize(
    "arguments",
    [{"every": 0}, {"clip": (0.0, 2.0)}, {"clip": (1.5, 2.0)}, {"clip": (0.5, 0.9)}, {"significance": -1.0}],
)
@pytest.mark.parametrize("rule", [GeN, WithinBudget])
def test_bad_arguments(rule, arguments):
    with pytest.raises(ValueError, match="must"):
        rule(**arguments)


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"tolerance": math.inf}, {"rows": 1}])
def test_bad_budgets(arguments):
    with pytest.raises(ValueError, match=r"`tolerance` must be positive .* `rows` at least 2"):
        WithinBudget(**arguments)


def test_examples_in_docstrings():
    assert doctest.testmod(step_sizes, extraglobs={"torch": torch}).failed == 0
