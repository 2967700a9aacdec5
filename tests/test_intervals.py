"""Intervals against closed forms and other libraries, and the laws that every interval keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from expunge import intervals
from expunge.record import Metric

FINITE = st.floats(-50, 50, allow_nan=False)
UNIT = st.floats(0, 1)
FEW = 200  # resamples in property tests


def test_interval_of_a_mean_is_that_of_the_normal_limit() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    metric = intervals.mean(list(values), seed=1, resamples=20_000)
    half = 1.959964 * values.std() / math.sqrt(400)
    assert metric.value == pytest.approx(values.mean())
    assert metric.low == pytest.approx(values.mean() - half, abs=0.02 * half + 0.005)
    assert metric.high == pytest.approx(values.mean() + half, abs=0.02 * half + 0.005)
    assert metric.n == 400


def test_interval_of_two_values_is_known_exactly() -> None:
    # Means of a resample: 0 (1/4), 1/2 (1/2), 1 (1/4); both tails of 2.5 % end at the extremes.
    assert intervals.share([0.0, 1.0]) == Metric(value=0.5, low=0.0, high=1.0, n=2)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    truth, hits = math.exp(0.5), 0  # mean of a standard log-normal
    for trial in range(200):
        metric = intervals.mean(list(rng.lognormal(size=80)), seed=trial, resamples=FEW)
        hits += metric.low <= truth <= metric.high
    assert 0.84 <= hits / 200 <= 0.98


@pytest.mark.parametrize(
    ("value", "n", "low", "high"),
    [(0.0, 10, 0.0, 0.30850), (1.0, 10, 0.69150, 1.0), (0.0, 1, 0.0, 0.975), (0.0, 100, 0.0, 0.03622)],
)
def test_no_leak_in_n_records_is_not_proof_of_no_leak(value: float, n: int, low: float, high: float) -> None:
    # Clopper-Pearson for 0 of n: 1 - 0.025^(1/n).
    metric = intervals.share([value] * n)
    assert (metric.value, metric.n) == (value, n)
    assert (metric.low, metric.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_no_leak_counts_records_also_where_there_are_groups() -> None:
    metric = intervals.share([0.0] * 10, groups=["ada"] * 5 + ["ben"] * 5)
    assert metric.high == pytest.approx(1 - 0.025**0.1)
    assert metric.n == 10


def test_identical_values_inside_the_range_give_a_point() -> None:
    assert intervals.share([0.25] * 8) == Metric(value=0.25, low=0.25, high=0.25, n=8)
    assert intervals.mean([0.0] * 8) == Metric(value=0.0, low=0.0, high=0.0, n=8), "an NLL of 0 is no share"
    assert intervals.mean([7.5]) == Metric(value=7.5, low=7.5, high=7.5, n=1)


def test_groups_widen_the_interval_of_records_that_repeat_each_other() -> None:
    rng = np.random.default_rng(3)
    people = np.repeat(rng.normal(size=20), 10)
    alone = intervals.mean(list(people))
    grouped = intervals.mean(list(people), groups=list(np.repeat(np.arange(20), 10)))
    assert grouped.value == alone.value
    width = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert width == pytest.approx(math.sqrt(10), rel=0.1), "20 units carry the information, not 200"


def test_groups_of_one_change_nothing() -> None:
    values = [0.1, 0.9, 0.4, 0.3]
    assert intervals.share(values, groups=list("abcd")) == intervals.share(values)


def test_a_group_of_another_size_keeps_the_mean_over_records() -> None:
    assert intervals.mean([1.0, 1.0, 1.0, 5.0], groups=["a", "a", "a", "b"]).value == 2.0


def test_a_collapsed_model_has_a_value_and_no_interval() -> None:
    for broken in (math.nan, math.inf):
        metric = intervals.mean([1.0, broken, 2.0])
        assert not math.isfinite(metric.value)
        assert math.isnan(metric.low)
        assert math.isnan(metric.high)
    assert math.isnan(intervals.share([math.nan, 0.5]).value)
    assert math.isnan(intervals.membership_auc([math.nan, 1.0], [0.0]).value)


@pytest.mark.parametrize("function", [intervals.mean, intervals.share])
def test_nothing_has_no_mean(function: type[intervals.mean]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        function([])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]; got 1.5"):
        intervals.share([0.2, 1.5])
    with pytest.raises(ValueError, match="1 for 2"):
        intervals.mean([0.2, 0.5], groups=["a"])
    with pytest.raises(ValueError, match="resamples"):
        intervals.mean([0.2, 0.5], resamples=0)
    with pytest.raises(ValueError, match="at least one"):
        intervals.membership_auc([1.0], [])


def test_large_samples_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values, others = list(np.arange(50.0)), list(np.arange(30.0) + 15)
    whole = intervals.mean(values), intervals.membership_auc(values, others)
    monkeypatch.setattr(intervals, "_BLOCK", 800)
    parts = intervals.mean(values), intervals.membership_auc(values, others)
    assert parts[0] == whole[0], "one sample: the same draws in smaller portions"
    assert parts[1].value == whole[1].value
    assert parts[1].low == pytest.approx(whole[1].low, abs=0.02)


@settings(deadline=None, max_examples=60)
@given(st.lists(FINITE, min_size=1, max_size=12), st.randoms(use_true_random=False), st.integers(0, 9))
def test_mean_lies_in_its_interval_whatever_the_order(values: list[float], random: object, seed: int) -> None:
    metric = intervals.mean(values, seed=seed, resamples=FEW)
    assert metric.low <= metric.value <= metric.high
    assert min(values) - 1e-9 <= metric.low
    assert metric.high <= max(values) + 1e-9
    assert metric.value == pytest.approx(np.mean(values), abs=1e-9)
    shuffled = values.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert intervals.mean(shuffled, seed=seed, resamples=FEW) == metric


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(UNIT | st.sampled_from([0.0, 1.0]), st.sampled_from("abc")), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_grouped_share_lies_in_its_interval_whatever_the_order(
    rows: list[tuple[float, str]], random: object
) -> None:
    def share(rows: list[tuple[float, str]]) -> Metric:
        return intervals.share([v for v, _ in rows], groups=[g for _, g in rows], resamples=FEW)

    metric = share(rows)
    assert -1e-12 <= metric.low <= metric.value <= metric.high <= 1 + 1e-12
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert share(shuffled) == metric


# --- membership


def test_auc_counts_pairs() -> None:
    # Pairs won by the member: (3, 2), (3, 1), (2, 1) and half of the tie (2, 2): 3.5 of 4.
    assert intervals.membership_auc([3.0, 2.0], [2.0, 1.0]).value == 3.5 / 4
    assert intervals.membership_auc([1.0] * 5, [1.0] * 5) == Metric(value=0.5, low=0.5, high=0.5, n=10)


def test_auc_interval_is_that_of_hanley_and_mcneil() -> None:
    rng = np.random.default_rng(4)
    members, others = rng.normal(0.8, 1, 150), rng.normal(0, 1, 250)
    metric = intervals.membership_auc(list(members), list(others), seed=0, resamples=10_000)
    a = metric.value
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = (a * (1 - a) + 149 * (q1 - a * a) + 249 * (q2 - a * a)) / (150 * 250)
    assert metric.high - metric.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)


def test_complete_separation_is_as_sure_as_the_smaller_group() -> None:
    metric = intervals.membership_auc([2.0, 3.0, 4.0], [0.0, 1.0])
    assert (metric.value, metric.high) == (1.0, 1.0)
    assert metric.low == pytest.approx(0.025**0.5), "two independent pairs"
    people = intervals.membership_auc(
        [2.0, 3.0], [0.0, 1.0], member_groups=["a", "a"], other_groups=["b", "c"]
    )
    assert people.low == pytest.approx(0.025), "one independent pair"


def test_grouped_auc_is_wider() -> None:
    rng = np.random.default_rng(5)
    members, others = np.repeat(rng.normal(0.5, 1, 15), 6), np.repeat(rng.normal(0, 1, 15), 6)
    groups = list(np.repeat(np.arange(15), 6))
    alone = intervals.membership_auc(list(members), list(others))
    grouped = intervals.membership_auc(list(members), list(others), member_groups=groups, other_groups=groups)
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(FINITE | st.sampled_from([0.0, 1.0]), min_size=1, max_size=15),
    st.lists(FINITE | st.sampled_from([0.0, 1.0]), min_size=1, max_size=15),
    st.randoms(use_true_random=False),
)
def test_auc_is_antisymmetric_ordered_and_scikit_learns(
    a: list[float], b: list[float], random: object
) -> None:
    metric = intervals.membership_auc(a, b, resamples=FEW)
    assert 0 <= metric.low <= metric.value <= metric.high <= 1
    assert metric.value == pytest.approx(roc_auc_score([1] * len(a) + [0] * len(b), a + b))
    assert metric.value + intervals.membership_auc(b, a, resamples=FEW).value == pytest.approx(1)
    shuffled = a.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert intervals.membership_auc(shuffled, b, resamples=FEW) == metric


def test_resampling_is_seeded() -> None:
    values = list(np.random.default_rng(6).normal(size=30))
    assert intervals.mean(values, seed=1) == intervals.mean(values, seed=1)
    assert intervals.mean(values, seed=1) != intervals.mean(values, seed=2)


# --- functions of several samples


def difference(drawn: dict[str, np.ndarray]) -> float:
    return float(drawn["a"].mean() - drawn["b"].mean())


def test_interval_of_a_difference_is_that_of_the_normal_limit() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(3, 2, 300), rng.normal(1, 1, 200)
    metric = intervals.aggregate(difference, {"a": list(a), "b": list(b)}, seed=1)
    half = 1.959964 * math.sqrt(a.var() / 300 + b.var() / 200)
    assert metric.value == pytest.approx(a.mean() - b.mean())
    assert metric.n == 500
    assert (metric.value - metric.low, metric.high - metric.value) == (
        pytest.approx(half, rel=0.08),
        pytest.approx(half, rel=0.08),
    )


def test_components_of_one_set_are_drawn_together() -> None:
    a = np.random.default_rng(8).normal(size=100)
    samples = {"a": list(a), "b": list(a + 0.5)}
    apart = intervals.aggregate(difference, samples, resamples=FEW)
    together = intervals.aggregate(difference, samples, sets={"a": "x", "b": "x"}, resamples=FEW)
    assert together.value == apart.value == pytest.approx(-0.5)
    assert (apart.n, together.n) == (200, 100)
    assert apart.high - apart.low > 0.3
    assert together.high - together.low == pytest.approx(0, abs=1e-9)


def test_groups_of_a_set_are_drawn_whole() -> None:
    people = np.repeat(np.random.default_rng(9).normal(size=20), 10)
    samples, groups = {"a": list(people), "b": [0.0]}, {"a": list(np.repeat(np.arange(20), 10))}
    alone = intervals.aggregate(difference, samples)
    grouped = intervals.aggregate(difference, samples, groups=groups)
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.12)


def test_an_aggregate_of_one_mean_is_that_mean() -> None:
    values = list(np.random.default_rng(10).normal(size=60))
    one = intervals.aggregate(lambda drawn: float(drawn["a"].mean()), {"a": values}, seed=3)
    mean = intervals.mean(values, seed=3)
    assert one.value == pytest.approx(mean.value)
    assert one.low == pytest.approx(mean.low, abs=0.05)
    assert one.high == pytest.approx(mean.high, abs=0.05)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=10),
    st.lists(UNIT, min_size=1, max_size=10),
    st.randoms(use_true_random=False),
)
def test_an_aggregate_does_not_depend_on_the_order_of_records(
    pairs: list[tuple[float, float]], other: list[float], random: object
) -> None:
    def harmonic(drawn: dict[str, np.ndarray]) -> float:
        means = [float(np.sort(values).mean()) for values in drawn.values()]
        return 3 / sum(1 / max(m, 1e-9) for m in means)

    def metric() -> Metric:
        samples = {"p": [p for p, _ in pairs], "q": [q for _, q in pairs], "o": other}
        return intervals.aggregate(harmonic, samples, sets={"p": "s", "q": "s"}, resamples=20)

    first = metric()
    assert first.low <= first.value <= first.high
    pairs, other = pairs.copy(), other.copy()
    random.shuffle(pairs)  # type: ignore[attr-defined]
    random.shuffle(other)  # type: ignore[attr-defined]
    assert metric() == first


def test_an_aggregate_that_is_not_finite_has_no_interval() -> None:
    metric = intervals.aggregate(difference, {"a": [math.nan, 1.0], "b": [0.0]}, resamples=9)
    assert math.isnan(metric.value)
    assert math.isnan(metric.low)
    assert math.isnan(metric.high)


def test_samples_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="set 'x' has 2 of a, 1 of b"):
        intervals.aggregate(difference, {"a": [1.0, 2.0], "b": [1.0]}, sets={"a": "x", "b": "x"})
    with pytest.raises(ValueError, match="set 'b' has 0 of b"):
        intervals.aggregate(difference, {"a": [1.0, 2.0], "b": []})
    with pytest.raises(ValueError, match="2 of a, 3 of its groups"):
        intervals.aggregate(difference, {"a": [1.0, 2.0], "b": [1.0]}, groups={"a": [1, 2, 3]})
    with pytest.raises(ValueError, match="resamples"):
        intervals.aggregate(difference, {"a": [1.0], "b": [1.0]}, resamples=0)
