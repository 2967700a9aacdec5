"""Probing: right losses, and nothing disturbed. Each test of the last kind fails on a naive probe."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import conftest
from expunge.collate import collate, encode
from expunge.probe import measure_line, rescale_step, row_losses, row_tokens
from expunge.records import read_records


@pytest.fixture
def batches(tokenizer):
    encoded = encode(read_records(conftest.rows(), name="retain"), tokenizer, template="none")
    return [collate(encoded[:5], 1), collate(encoded[5:9], 1)]


def with_dropout(model: nn.Module, rate: float = 0.5) -> nn.Module:
    """Attention dropout, live in training mode."""
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = rate
    return model


def test_row_losses_are_mean_nll_per_row(model, batches):
    found = row_losses(model, batches)
    for batch, expected in zip(batches, found.split([5, 4]), strict=True):
        logits = model.double()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for i, loss in enumerate(expected):
            labels = batch["labels"][i, 1:]
            reference = nn.functional.cross_entropy(logits[i, :-1], labels, ignore_index=-100)
            assert abs(float(reference.detach()) - float(loss)) < 1e-5
        model.float()
    assert row_tokens(batches).tolist() == [
        float((label != -100).sum()) for b in batches for label in b["labels"]
    ]


def test_dropout_is_off_and_modes_and_random_state_are_kept(model, batches):
    with_dropout(model).train()
    model.model.norm.eval()
    state = torch.get_rng_state()
    first, second = row_losses(model, batches), row_losses(model, batches)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.model.norm.training


def test_losses_are_fp32_inside_a_bf16_region(model, batches):
    plain = row_losses(model, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(row_losses(model, batches), plain, rtol=0, atol=0)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> list[torch.Tensor]:
    model.zero_grad()
    (-model(input_ids=batch["input_ids"], labels=batch["labels"]).loss).backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    return before


def test_measuring_leaves_parameters_and_optimizer_bit_identical(model, batches):
    """The naive probe steps Adam twice and adds and subtracts ηu, which rounds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer, batches[0])
    zero = row_losses(model, batches)
    before = step(model, optimizer, batches[1])
    weights = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    line = measure_line(
        list(model.parameters()), before, zero, lambda: row_losses(model, batches), row_tokens(batches)
    )
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments["state"][key][k], v) for k, v in state.items())
    torch.testing.assert_close(line.plus, row_losses(model, batches), rtol=0, atol=0)
    assert line.minus.mean() != line.plus.mean()


def test_a_failing_measurement_puts_the_parameters_back(model, batches):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    zero = row_losses(model, batches)
    before = step(model, optimizer, batches[0])
    weights = copy.deepcopy(model.state_dict())
    calls = iter([zero])
    with pytest.raises(StopIteration):
        measure_line(list(model.parameters()), before, zero, lambda: next(calls), row_tokens(batches))
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_rescaled_step_is_the_step_at_the_rescaled_rate(batches, factor):
    models = [conftest.build_model() for _ in range(2)]
    for model, rate in zip(models, (1e-3, factor * 1e-3), strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
        before = step(model, optimizer, batches[0])
        if model is models[0]:
            rescale_step(list(model.parameters()), before, factor)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
