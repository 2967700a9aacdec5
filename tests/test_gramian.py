"""Gradient buffers against the explicit Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.gramian import GradientBuffers, inner


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def losses(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = net(x)
    return [out[:, 0].square().mean(), out[:, 1].sin().mean(), (out[:, 2] - out[:, 0]).abs().mean()]


def flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in net.parameters()])


def explicit(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = []
    for loss in losses(net, x):
        net.zero_grad()
        loss.backward(retain_graph=True)
        rows.append(flat(net))
    net.zero_grad()
    return torch.stack(rows)


@pytest.mark.parametrize("weights", [[1.0, -2.0, 0.5], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0]])
def test_gramian_combination_and_products_equal_the_explicit_ones(weights):
    net, x = network(), torch.randn(6, 5, dtype=torch.float64)
    jacobian = explicit(net, x)
    buffers = GradientBuffers(list(net.parameters()), 3)
    for i in range(3):
        with buffers.collect(i):
            losses(net, x)[i].backward()
    torch.testing.assert_close(buffers.gramian(), jacobian @ jacobian.T)
    w = torch.tensor(weights, dtype=torch.float64)
    buffers.combine(w)
    torch.testing.assert_close(flat(net), w @ jacobian)
    change = [torch.randn_like(p) for p in net.parameters()]
    expected = jacobian @ torch.cat([c.reshape(-1) for c in change])
    found, length = buffers.products(change)
    torch.testing.assert_close(found, expected)
    assert length == pytest.approx(float(torch.cat([c.reshape(-1) for c in change]).norm()))


def test_micro_batches_accumulate_per_objective():
    net, x = network(), torch.randn(8, 5, dtype=torch.float64)
    buffers = GradientBuffers(list(net.parameters()), 3)
    for half in (x[:4], x[4:]):
        for i in range(3):
            with buffers.collect(i):
                (losses(net, half)[i] / 2).backward()
    jacobian = explicit(net, x)
    torch.testing.assert_close(buffers.gramian(), jacobian @ jacobian.T)


def test_products_undo_clipping():
    net, x = network(), torch.randn(6, 5, dtype=torch.float64)
    jacobian = explicit(net, x)
    buffers = GradientBuffers(list(net.parameters()), 3)
    for i in range(3):
        with buffers.collect(i):
            losses(net, x)[i].backward()
    buffers.combine(torch.ones(3, dtype=torch.float64))
    for p in net.parameters():
        p.grad *= 0.25
    change = [torch.randn_like(p) for p in net.parameters()]
    expected = jacobian @ torch.cat([c.reshape(-1) for c in change])
    torch.testing.assert_close(buffers.products(change, scale=0.25)[0], expected)


def test_a_parameter_that_one_objective_does_not_reach():
    a, b = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))
    buffers = GradientBuffers([a, b], 2)
    with buffers.collect(0):
        (a * 5).sum().backward()
    with buffers.collect(1):
        (b * 7).sum().backward()
    assert buffers.gramian().tolist() == [[25.0, 0.0], [0.0, 49.0]]
    buffers.combine(torch.tensor([1.0, 2.0]))
    assert (a.grad.item(), b.grad.item()) == (5.0, 14.0)


def test_at_most_m_gradients_are_held():
    """m − 1 buffers beyond `.grad` after combining: the last active one becomes `.grad` itself."""
    p = nn.Parameter(torch.ones(4))
    buffers = GradientBuffers([p], 3)
    for i in range(3):
        with buffers.collect(i):
            (p * (i + 1)).sum().backward()
    last = buffers.gradients[2][0]
    buffers.combine(torch.ones(3))
    assert p.grad is last
    assert sum(g is not None for gradient in buffers.gradients for g in gradient) == 2


def test_inner_sums_in_double_precision():
    big = [torch.full((1,), 1e8), torch.ones(1), torch.full((1,), -1e8)]
    ones = [torch.ones(1)] * 3
    assert inner(big, ones) == 1.0
