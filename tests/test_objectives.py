"""Objectives against closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.objectives import NLL, UCE, Ascent, TokenLogits


def tokens(dtype: torch.dtype = torch.float64) -> TokenLogits:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(2.0), math.log(6.0)]], dtype=dtype)
    return TokenLogits(logits, targets=torch.tensor([0, 1]), rows=torch.tensor([0, 1]))


def test_nll_is_minus_log_softmax():
    expected = torch.tensor([-math.log(1 / 4), -math.log(6 / 8)], dtype=torch.float64)
    torch.testing.assert_close(NLL()(tokens()), expected, rtol=1e-12, atol=0)


def test_nll_gradient_on_the_target_logit_is_p_minus_one():
    t = tokens()
    t.logits.requires_grad_()
    NLL()(t).sum().backward()
    torch.testing.assert_close(t.logits.grad[0], torch.tensor([1 / 4 - 1, 3 / 4], dtype=torch.float64))


def test_ascent_is_the_negative():
    torch.testing.assert_close(Ascent(NLL("forget"))(tokens()), -NLL("forget")(tokens()))
    assert Ascent(NLL("forget")).source == "forget"
    assert Ascent(NLL("forget")).name == "-nll(forget)"


def test_low_precision_logits_are_scored_in_fp32():
    assert NLL()(tokens(torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_uce_is_minus_log_of_one_minus_the_share_of_p(fraction: float):
    expected = torch.tensor([-math.log(1 - fraction * p) for p in (1 / 4, 6 / 8)], dtype=torch.float64)
    torch.testing.assert_close(UCE(fraction=fraction)(tokens()), expected, rtol=1e-12, atol=0)


def test_uce_gradient_on_the_target_logit_is_p_and_its_sum_is_zero():
    t = tokens()
    t.logits.requires_grad_()
    UCE()(t).sum().backward()
    torch.testing.assert_close(t.logits.grad[1], torch.tensor([-6 / 8, 6 / 8], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uce_is_finite_with_a_full_gradient_where_p_rounds_to_one(dtype: torch.dtype):
    logits = torch.tensor([[40.0, -40.0, -41.0]], dtype=dtype, requires_grad=True)
    t = TokenLogits(logits, targets=torch.tensor([0]), rows=torch.tensor([0]))
    assert t.target_log_probs.exp().item() == 1
    value = UCE()(t)
    value.sum().backward()
    assert value.item() == pytest.approx(80, abs=1)
    assert logits.grad[0, 0].item() == 1


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_uce_refuses_a_fraction_out_of_range(fraction: float):
    with pytest.raises(ValueError, match=r"`fraction` must be in \(0, 1\]"):
        UCE(fraction=fraction)
