"""Membership attacks against an independent float64 implementation, straight from the definitions."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from expunge import membership
from expunge.collate import Encoded
from expunge.scoring import TokenScores, score

FRACTION = 0.4


@pytest.fixture
def rows(tokenizer):
    texts = [("Who lives here?", " Ada Ash lives at 13 Ash Street"), ("A phone number?", " 555-0117 is his")]
    end = tokenizer.eos_token_id
    out = []
    for prompt, answer in texts:
        head, body = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
        out.append((Encoded((*head, *body, end), len(head)), answer.strip()))
    return out


def naive(model, row):
    """Log-probabilities of the labels and the whole distributions, one row alone, in float64."""
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        table = torch.log_softmax(model(ids).logits[0].double(), -1)
    table = table[row.prompt_length - 1 : -1]
    return table[torch.arange(len(row.labels)), torch.tensor(row.labels)], table


def lowest(values, fraction):
    ordered = sorted(values)
    kept = ordered[: max(1, math.floor(fraction * len(ordered)))]
    return sum(kept) / len(kept)


def test_attacks_are_their_definitions_on_a_model(model, rows):
    model = model.double().eval()
    scores = score(model, [row for row, _ in rows], pad_id=0, moments=True)
    for (row, text), found in zip(rows, scores, strict=True):
        log_probs, table = naive(model, row)
        nll = -float(log_probs.mean())
        bare = membership.without_end(found)
        chances = table.exp()
        means = (chances * table).sum(-1)
        deviations = ((chances * (table - means[:, None]) ** 2).sum(-1)).sqrt()
        z = ((log_probs - means) / deviations)[:-1]
        assert membership.loss(found) == pytest.approx(-nll, abs=1e-6)
        assert membership.zlib_ratio(found, text) == pytest.approx(
            -nll / len(zlib.compress(text.encode())), abs=1e-6
        )
        assert membership.min_k(bare, FRACTION) == pytest.approx(
            lowest(log_probs[:-1].tolist(), FRACTION), abs=1e-6
        )
        assert membership.min_k_plus_plus(bare, FRACTION) == pytest.approx(
            lowest(z.tolist(), FRACTION), abs=1e-6
        )
        assert membership.reference(found, scores[0]) == pytest.approx(scores[0].nll - nll, abs=1e-6)


def test_likelier_records_score_higher_on_every_attack():
    flat, deviations = np.full(5, -3.0), np.full(5, 0.5)
    likely, unlikely = (
        TokenScores(np.full(5, level), np.zeros(5, bool), flat, deviations) for level in (-1.0, -2.0)
    )
    assert membership.loss(likely) > membership.loss(unlikely)
    assert membership.zlib_ratio(likely, "same text") > membership.zlib_ratio(unlikely, "same text")
    assert membership.reference(likely, unlikely) == 1 == -membership.reference(unlikely, likely)
    assert membership.gradient_norm(0.5) > membership.gradient_norm(2.0)
    assert membership.min_k(likely) > membership.min_k(unlikely)
    assert membership.min_k_plus_plus(likely) == 4 > membership.min_k_plus_plus(unlikely) == 2


def test_a_position_without_spread_counts_as_a_small_one():
    certain = TokenScores(
        np.array([0.0, -2.0]), np.ones(2, bool), np.array([0.0, -1.0]), np.array([0.0, 1.0])
    )
    assert membership.min_k_plus_plus(certain, 1.0) == pytest.approx((0 - 1) / 2)


def test_the_end_is_dropped_everywhere():
    scores = TokenScores(np.array([-1.0, -2.0, -9.0]), np.array([True, False, True]), np.zeros(3), np.ones(3))
    bare = membership.without_end(scores)
    assert bare.nll == 1.5
    assert [len(a) for a in (bare.matches, bare.means, bare.deviations)] == [2, 2, 2]
    with pytest.raises(ValueError, match="a token before the last; got 1 tokens"):
        membership.without_end(TokenScores(np.zeros(1), np.ones(1, bool)))


def test_moments_are_asked_for():
    with pytest.raises(ValueError, match="moments=True"):
        membership.min_k_plus_plus(TokenScores(np.zeros(2), np.ones(2, bool)))


def test_privleak_is_zero_at_the_reference_and_negative_where_forget_still_leaks():
    assert membership.privleak(0.6, 0.6) == 0
    assert membership.privleak(1.0, 0.5) == -100
    assert membership.privleak(0.0, 0.5) == 100
    # OpenUnlearning's published summary of a forget10 retain model, which took 0.5 for its reference.
    assert membership.privleak(0.37574375, 0.5) == pytest.approx(24.851249995029743, abs=1e-6)
    with pytest.raises(ValueError, match="below 1"):
        membership.privleak(0.5, 1.0)
