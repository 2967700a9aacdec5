"""Sign and zeroth-order updates on tensors."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn

from expunge import updates
from expunge.updates import ZerothOrder, sign_update
from expunge.weightings import Normalized


def problem() -> tuple[list[nn.Parameter], Tensor]:
    """Two parameter tensors of 12 numbers in all, and the matrix of a quadratic loss."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((3, 2), (6,))
    ]
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    return parameters, root.T @ root / 12


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def gradients(parameters: list[nn.Parameter], losses: Tensor) -> Tensor:
    """[m, n], by backward passes."""
    return torch.stack([flat(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses])


def test_the_sign_of_an_sgd_step_is_sign_sgd():
    parameters, matrix = problem()
    before = [p.detach().clone() for p in parameters]
    (flat(parameters) @ matrix @ flat(parameters)).backward()
    signs = [p.grad.sign() for p in parameters]
    torch.optim.SGD(parameters, lr=0.25).step()
    sign_update(parameters, before, 0.25)
    for parameter, old, sign in zip(parameters, before, signs, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.25 * sign)


def test_the_sign_of_adams_update_is_the_sign_of_its_momentum():
    parameters, matrix = problem()
    twin = [nn.Parameter(p.detach().clone()) for p in parameters]
    optimizers = [torch.optim.Adam(ps, lr=1e-2) for ps in (parameters, twin)]
    for _ in range(3):
        for ps, optimizer in zip((parameters, twin), optimizers, strict=True):
            before = [p.detach().clone() for p in ps]
            for p, q in zip(ps, torch.autograd.grad(flat(ps) @ matrix @ flat(ps), ps), strict=True):
                p.grad = q
            optimizer.step()
            if ps is parameters:
                sign_update(ps, before, 1e-2)
                moments = [optimizer.state[p]["exp_avg"] for p in ps]
                for p, old, moment in zip(ps, before, moments, strict=True):
                    torch.testing.assert_close(p.detach(), old - 1e-2 * moment.sign())
    with pytest.raises(ValueError, match="positive"):
        sign_update(parameters, before, 0.0)


@pytest.mark.parametrize("radius", [1e-3, 0.5, 10.0])
def test_slopes_are_exact_on_quadratics_whatever_the_radius(radius):
    parameters, matrix = problem()

    def losses() -> Tensor:
        x = flat(parameters)
        return torch.stack([x @ matrix @ x, x.sum(), -3 * x[0]])

    truth = gradients(parameters, losses())
    rule = ZerothOrder(radius=radius, queries=3)
    slopes = rule.measure(parameters, losses, seed=5)
    for j in range(3):  # a weight on the linear loss alone gives back the direction
        one = torch.zeros_like(slopes)
        one[j, 1] = 3.0
        rule.combine(parameters, one, torch.tensor([0.0, 1.0, 0.0]), seed=5)
        direction = flat([p.grad for p in parameters])
        torch.testing.assert_close(slopes[j], truth @ direction, rtol=1e-7, atol=1e-8)


def test_parameters_come_back_bit_for_bit_also_after_an_error():
    parameters, matrix = problem()
    before = [p.detach().clone() for p in parameters]
    state = torch.get_rng_state()
    rule = ZerothOrder(queries=2)
    rule.measure(parameters, lambda: (flat(parameters) @ matrix @ flat(parameters))[None], seed=1)
    with pytest.raises(RuntimeError, match="broken"):
        rule.measure(parameters, _broken, seed=1)
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in parameters)


def _broken() -> Tensor:
    raise RuntimeError("broken")


def test_gradient_and_gramian_are_estimated_without_bias():
    """20,000 directions in 12 dimensions: errors of some n/q-th roots, about 3 %."""
    parameters, matrix = problem()

    def losses() -> Tensor:
        x = flat(parameters)
        return torch.stack([x @ matrix @ x, x.sum()])

    truth = gradients(parameters, losses())
    rule = ZerothOrder(queries=20_000)
    slopes = rule.measure(parameters, losses, seed=2)
    gramian, weights = rule.gramian(slopes), torch.tensor([1.0, -2.0])
    lengths = truth.norm(dim=1)
    torch.testing.assert_close(
        gramian / lengths[:, None] / lengths, truth @ truth.T / lengths[:, None] / lengths, rtol=0, atol=0.05
    )
    rule.combine(parameters, slopes, weights, seed=2)
    wanted = weights.double() @ truth
    assert (flat([p.grad for p in parameters]) - wanted).norm() <= 0.1 * wanted.norm()


def test_any_weighting_goes_with_it_and_unlearns_without_a_backward_pass():
    """Two quadratics with known optima: retain is kept at its minimum while forget rises."""
    x = nn.Parameter(torch.tensor([0.5, 1.0], dtype=torch.float64))
    target = torch.tensor([0.5, 0.0], dtype=torch.float64)

    def losses() -> Tensor:
        return torch.stack([-((x - target) ** 2).sum(), 4 * (x[0] - 0.5) ** 2])

    rule, start = ZerothOrder(queries=8), losses()
    for step in range(60):
        slopes = rule.measure([x], losses, seed=step)
        rule.combine([x], slopes, Normalized()(rule.gramian(slopes), losses()), seed=step)
        with torch.no_grad():
            x.sub_(0.02 * x.grad)
    end = losses()
    assert -end[0] > -2 * start[0]
    assert end[1] < 0.05


def test_steps_have_directions_of_their_own_and_ranks_the_same():
    parameters, _ = problem()
    rule = ZerothOrder(queries=3)

    def drawn(seed: int) -> list[Tensor]:
        return [next(iter(updates._direction(parameters, s))) for s in rule._seeds(seed)]

    assert all(torch.equal(a, b) for a, b in zip(drawn(4), drawn(4), strict=True))
    different = drawn(4) + drawn(5)
    assert len({float(d[0, 0]) for d in different}) == 6


def test_the_hybrid_alternates():
    assert [ZerothOrder(every=2).due(step) for step in range(4)] == [False, True, False, True]
    assert all(ZerothOrder().due(step) for step in range(3))


@pytest.mark.parametrize("arguments", [{"radius": 0.0}, {"queries": 0}, {"every": 0}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        ZerothOrder(**arguments)


def test_examples_in_docstrings():
    assert doctest.testmod(updates).failed == 0


def test_every_seed_that_a_run_may_have_gives_directions_of_its_own():
    """Generators on the CPU keep 32 bits of a seed, and refuse one of more than 64."""
    rule, weights = ZerothOrder(queries=8), [nn.Parameter(torch.zeros(2))]
    steps = [(seed << 32) + step for seed in (0, 1, 2**32 - 1) for step in (0, 1, 10**6)]
    drawn = [next(iter(updates._direction(weights, one))) for step in steps for one in rule._seeds(step)]
    assert len({tuple(direction.tolist()) for direction in drawn}) == len(steps) * 8
