"""Objectives against closed forms in float64."""

from __future__ import annotations

import math

import torch

from expunge.objectives import NLL, Ascent, TokenLogits


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
