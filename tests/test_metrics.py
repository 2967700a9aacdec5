"""Metrics of one record against closed forms and the published logs."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from expunge import metrics


@pytest.mark.parametrize(
    ("generation", "response"),
    [
        ("  555-0133. ", "555-0133"),
        ("Ada\n Lovelace\tof  London", "ada lovelace of London."),
        ("“Straße 5”", "STRASSE 5"),
        ("ﬁve ⅻ", "five xii"),
        ("'1011 San Jose Street, MD, 21225.'", "1011 San Jose Street, MD, 21225."),
        ("...", "…"),
    ],
)
def test_exact_match_forgives_typography_only(generation: str, response: str) -> None:
    assert metrics.exact_match(generation, response)


@pytest.mark.parametrize(
    ("generation", "response"),
    [
        ("555-0134", "555-0133"),
        ("The number is 555-0133", "555-0133"),
        ("5550133", "555-0133"),
        ("", "."),
        ("é", "e"),
        ("a.b", "ab"),
    ],
)
def test_exact_match_forgives_nothing_else(generation: str, response: str) -> None:
    assert not metrics.exact_match(generation, response)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = metrics.normalise(text)
    assert metrics.normalise(once) == once
    assert metrics.normalise(f"  {text}\n") == once


def test_rouge_l_recall_is_the_share_of_the_response_in_order() -> None:
    # "cats ran home" and "the cat was running home": common subsequence cat, home of 3 words (stems).
    assert metrics.rouge_l_recall("the cat was running home", "cats walked home") == pytest.approx(2 / 3)
    assert metrics.rouge_l_recall("home cats", "cats home") == pytest.approx(1 / 2)
    assert metrics.rouge_l_recall("", "cats") == 0.0


def test_rouge_l_recall_is_undefined_where_rouge_sees_no_word() -> None:
    assert math.isnan(metrics.rouge_l_recall("Привет", "Привет"))


def test_rouge_l_recall_reproduces_the_published_logs(shared_data: Path) -> None:
    with gzip.open(
        shared_data / "tofu_reference_logs" / "rouge_cases.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        cases = [json.loads(line) for line in lines]
    assert len(cases) == 400
    ours = [metrics.rouge_l_recall(case["generated"], case["reference"]) for case in cases]
    assert ours == [case["rougeL_recall"] for case in cases]


def test_truth_ratio_is_the_share_of_the_geometric_mean_of_the_swaps() -> None:
    # Length-normalised probabilities: true 0.8; swaps 0.1 and 0.4, of geometric mean 0.2: R = 1/4, R / (1 +
    # R) = 1/5.
    assert metrics.truth_ratio(-math.log(0.8), [-math.log(0.1), -math.log(0.4)]) == pytest.approx(0.2)
    assert metrics.truth_ratio(2.0, [2.0, 2.0]) == 0.5
    assert metrics.truth_ratio(1000.0, [0.0]) == 1.0
    assert metrics.truth_ratio(0.0, [1000.0]) == 0.0
    with pytest.raises(ValueError, match="swapped"):
        metrics.truth_ratio(1.0, [])


@given(st.floats(0, 20), st.lists(st.floats(0, 20), min_size=1, max_size=4))
def test_truth_ratio_has_the_odds_of_tofu(nll: float, swapped: list[float]) -> None:
    tofu = np.exp(-np.mean(swapped)) / np.exp(-nll)
    assert logit(metrics.truth_ratio(nll, swapped)) == pytest.approx(np.log(tofu), abs=1e-3)


def test_min_k_averages_the_least_likely_fifth() -> None:
    log_probs = [-1.0, -9.0, -2.0, -7.0, -3.0, -4.0, -5.0, -6.0, -0.5, -0.1]
    assert metrics.min_k(log_probs) == -8.0
    assert metrics.min_k(log_probs, fraction=1.0) == pytest.approx(np.mean(log_probs))
    assert metrics.min_k([-1.0, -4.0]) == -4.0, "never fewer than one token"


@pytest.mark.parametrize("fraction", [0.0, -0.2, 1.5, math.nan])
def test_min_k_refuses_a_share_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        metrics.min_k([-1.0], fraction=fraction)


def test_min_k_refuses_no_tokens() -> None:
    with pytest.raises(ValueError, match="token"):
        metrics.min_k([])
