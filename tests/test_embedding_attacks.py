"""Perturbations of any input: linear models, whose optima have closed forms, and a small classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from expunge.attacks.embedding import (
    DDN,
    L1,
    L2,
    NES,
    SPSA,
    Backward,
    Ball,
    Box,
    CarliniWagner,
    DeepFool,
    ElasticNet,
    LInf,
    NAttack,
    ProjectedGradient,
    Search,
    Walk,
    cross_entropy,
    fgm,
    fgsm,
    margin,
    momentum,
    nes,
    pgd,
    spsa,
)
from expunge.attacks.embedding.balls import Masked

BALLS = [LInf, L2, L1]
DUAL = {LInf: 1, L2: 2, L1: np.inf}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear:
    """Logits W x + b of k classes over d inputs; all that is asked of it has a closed form."""

    def __init__(self, classes: int = 4, size: int = 6, seed: int = 0) -> None:
        self.W, self.b = draw(seed, classes, size), draw(seed + 1, classes)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.W.T + self.b

    def distances(self, x: Tensor, y: Tensor, dual: float) -> Tensor:
        """Least norm that takes each input from its class y to another, over classes, [b, k]."""
        logits = self(x)
        gaps = logits.gather(1, y[:, None]) - logits
        slopes = self.W[None] - self.W[y][:, None]
        return (gaps / slopes.norm(p=dual, dim=-1)).scatter(1, y[:, None], torch.inf)


@pytest.fixture
def linear() -> tuple[Linear, Tensor, Tensor]:
    model, x = Linear(), draw(7, 12, 6)
    return model, x, model(x).argmax(1)


def linear_loss(weights: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """A loss <w, x> whose maximum over a ball of radius r is <w, x> + r times the dual norm of w."""
    return lambda x: x.flatten(1) @ weights, lambda outputs, _y: outputs


# --- balls


@given(st.integers(0, 10_000), st.floats(0.05, 5.0))
def test_the_l1_projection_is_the_nearest_point(seed: int, radius: float) -> None:
    delta = 2 * draw(seed, 1, 4)
    ours = L1(radius).project(delta)
    assert float(L1().norm(ours)) <= radius * (1 + 1e-9)
    if float(L1().norm(delta)) <= radius:
        torch.testing.assert_close(ours, delta)
        return
    start = (delta / L1().norm(delta) * radius).numpy()[0]
    # In each orthant the ball is a simplex: the nearest point has the signs of the point itself.
    signs = np.sign(delta.numpy()[0])
    found = minimize(
        lambda p: float(((p * signs - delta.numpy()[0]) ** 2).sum()),
        np.abs(start),
        bounds=[(0, None)] * 4,
        constraints={"type": "ineq", "fun": lambda p: radius - p.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert float((ours - delta).norm()) <= np.sqrt(found.fun) + 1e-6


@given(st.integers(0, 10_000), st.floats(0.05, 5.0), st.sampled_from(BALLS))
def test_balls_keep_their_laws(seed: int, radius: float, kind: Any) -> None:
    ball: Ball = kind(radius)
    delta, gradient = 3 * draw(seed, 5, 2, 3), draw(seed + 1, 5, 2, 3)
    inside = ball.project(delta)
    assert (ball.norm(inside) <= radius * (1 + 1e-9)).all()
    torch.testing.assert_close(ball.project(inside), inside)
    steepest = ball.steepest(gradient)
    torch.testing.assert_close(ball.norm(steepest), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close((steepest * gradient).flatten(1).sum(1), ball.dual(gradient))
    torch.testing.assert_close(ball.dual(gradient), gradient.flatten(1).norm(p=DUAL[kind], dim=1))
    sample = ball.sample(delta, torch.Generator().manual_seed(seed))
    assert sample.shape == delta.shape
    assert (ball.norm(sample) <= radius * (1 + 1e-9)).all()


@pytest.mark.parametrize("kind", BALLS)
def test_masked_coordinates_do_not_move_and_have_no_length(kind: Any) -> None:
    delta, mask = 3 * draw(0, 5, 4, 3), torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    ball, plain = Masked(kind(0.5), mask), kind(0.5)
    real = delta[:, 1::2]
    torch.testing.assert_close(ball.norm(delta), plain.norm(real))
    torch.testing.assert_close(ball.dual(delta), plain.dual(real))
    for whole, part in (
        (ball.project(delta), plain.project(real)),
        (ball.steepest(delta), plain.steepest(real)),
    ):
        assert not whole[:, ::2].any()
        torch.testing.assert_close(whole[:, 1::2], part)
    sample = ball.sample(delta, torch.Generator().manual_seed(0))
    assert not sample[:, ::2].any()
    assert (ball.norm(sample) <= 0.5 + 1e-12).all()


@pytest.mark.parametrize("kind", BALLS)
def test_samples_fill_a_ball_evenly(kind: Any) -> None:
    """The norm of a uniform sample, to the power of the dimension, is uniform in [0, 1]."""
    sample = kind(1.0).sample(torch.zeros(4000, 3), torch.Generator().manual_seed(0))
    levels = kind(1.0).norm(sample) ** 3
    for level in (0.25, 0.5, 0.75):
        assert abs(float((levels < level).float().mean()) - level) < 0.03
    assert sample.mean(0).abs().max() < 0.03


def test_steepest_directions_of_nothing_are_nothing() -> None:
    for kind in BALLS:
        assert not kind(1.0).steepest(torch.zeros(2, 3)).any()
        assert not kind(1.0).project(torch.zeros(2, 3)).any()


# --- optima of linear losses


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_reaches_the_optimum_of_a_linear_loss(kind: Any, targeted: bool) -> None:
    weights, x, y = draw(1, 6), draw(2, 5, 2, 3), torch.zeros(5, dtype=torch.long)
    ball = kind(0.7)
    predict, loss = linear_loss(weights)
    walk = Walk(60, 0.14, random_start=True)
    found = ProjectedGradient(predict, loss, ball, walk, targeted=targeted).perturb(x, y)
    best = 0.7 * weights.norm(p=DUAL[kind]) * (-1 if targeted else 1)
    torch.testing.assert_close(predict(found) - predict(x), best.expand(5), rtol=1e-3, atol=1e-9)
    assert (ball.norm(found - x) <= 0.7 * (1 + 1e-9)).all()


def test_one_step_is_enough_on_a_linear_loss() -> None:
    weights, x, y = draw(1, 6), draw(2, 5, 6), torch.zeros(5, dtype=torch.long)
    predict, loss = linear_loss(weights)
    gain = predict(fgsm(predict, loss, 0.3).perturb(x, y)) - predict(x)
    torch.testing.assert_close(gain, 0.3 * weights.norm(p=1).expand(5))
    gain = predict(fgm(predict, loss, 0.3).perturb(x, y)) - predict(x)
    torch.testing.assert_close(gain, 0.3 * weights.norm().expand(5))
    gain = predict(momentum(predict, loss, LInf(0.3)).perturb(x, y)) - predict(x)
    torch.testing.assert_close(gain, 0.3 * weights.norm(p=1).expand(5))


@pytest.mark.parametrize("attack", ["nes", "spsa", "nattack"])
def test_values_alone_lead_to_the_optimum(attack: str) -> None:
    """No gradient is asked for: what is attacked gives none."""
    weights, x, y = draw(1, 6), draw(2, 5, 6), torch.zeros(5, dtype=torch.long)
    inner, loss = linear_loss(weights)

    def predict(x: Tensor) -> Tensor:
        return inner(x.detach())

    ball, walk = L2(0.5), Walk(20, 0.15)
    made: Any = {
        "nes": nes(predict, loss, ball, steps=10, estimator=NES(pairs=40)),
        "spsa": spsa(predict, loss, ball, steps=10, estimator=SPSA(pairs=40)),
        "nattack": NAttack(predict, loss, ball=ball, walk=walk, population=30),
    }[attack]
    found = made.perturb(x, y)
    assert (ball.norm(found - x) <= 0.5 * (1 + 1e-9)).all()
    assert (predict(found) - predict(x) >= 0.9 * 0.5 * weights.norm()).all()
    assert torch.equal(found, made.perturb(x, y))


@pytest.mark.parametrize("estimator", [NES(pairs=1500), SPSA(pairs=1500)])
def test_estimates_approach_the_gradient(estimator: NES | SPSA) -> None:
    x = draw(3, 2, 4)

    def objective(z: Tensor) -> Tensor:
        return (z**2).sum(1) + z[:, 0] * z[:, 1]

    true = Backward()(objective, x, torch.Generator())[1]
    values, estimate = estimator(objective, x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(values, objective(x))
    assert (estimate - true).norm() < 0.1 * true.norm()


def test_momentum_follows_the_running_sum() -> None:
    """Two steps on a loss whose gradient turns: the second follows the sum of both, not the second alone."""
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.long)

    def predict(z: Tensor) -> Tensor:
        return 3 * z[:, 0] - 10 * z[:, 0] ** 2 + z[:, 1]

    def end(decay: float) -> Tensor:
        walk = Walk(2, 0.2, momentum=decay)
        trail: list[Tensor] = []

        def watched(z: Tensor) -> Tensor:
            trail.append(z.detach())
            return predict(z)

        ProjectedGradient(watched, lambda out, _y: out, LInf(5.0), walk).perturb(x, y)
        return trail[-1]

    torch.testing.assert_close(end(0.0), torch.tensor([[0.0, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(end(1.0), torch.tensor([[0.4, 0.4]], dtype=torch.float64))


# --- nearest fooling points of linear classifiers


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("targeted", [False, True])
def test_deepfool_is_exact_on_linear_classifiers(
    linear: tuple[Linear, Tensor, Tensor], kind: Any, targeted: bool
) -> None:
    model, x, y = linear
    if targeted:
        model.W, model.b = model.W[:2], model.b[:2]
        y = 1 - model(x).argmax(1)
        known = model.distances(x, 1 - y, DUAL[kind]).amin(1)
    else:
        known = model.distances(x, y, DUAL[kind]).amin(1)
    on_boundary = DeepFool(model, kind(), steps=1, overshoot=0.0, targeted=targeted).perturb(x, y)
    torch.testing.assert_close(kind().norm(on_boundary - x), known)
    torch.testing.assert_close(
        margin(model(on_boundary), y), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-9
    )
    across = DeepFool(model, kind(), targeted=targeted).perturb(x, y)
    assert ((model(across).argmax(1) == y) == targeted).all()
    torch.testing.assert_close(kind().norm(across - x), 1.02 * known)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", ["carlini-wagner", "ddn"])
def test_minimal_attacks_come_close_to_the_minimum(
    linear: tuple[Linear, Tensor, Tensor], attack: str, targeted: bool
) -> None:
    """Of the class that is reached; which is the nearest one for nearly all (it is not convex)."""
    model, x, y = linear
    if targeted:
        model.W, model.b = model.W[:2], model.b[:2]
        y = 1 - model(x).argmax(1)
    known = model.distances(x, model(x).argmax(1), 2)
    search = Search(0.1, rounds=6, steps=80)
    made: Any = {
        "carlini-wagner": CarliniWagner(model, search=search, targeted=targeted, size=0.03),
        "ddn": DDN(model, steps=200, gamma=0.03, targeted=targeted),
    }[attack]
    found = made.perturb(x, y)
    reached = model(found).argmax(1)
    assert ((reached == y) == targeted).all()
    lengths = L2().norm(found - x)
    assert (lengths >= known.amin(1) * (1 - 1e-9)).all()
    assert (lengths <= known.gather(1, reached[:, None])[:, 0] * 1.05 + 2e-3).all()
    assert (reached == known.argmin(1)).sum() >= 10


def test_the_elastic_net_finds_the_sparse_optimum() -> None:
    """KKT: coordinates are sign(w) max(λ|w| - β, 0) / 2, with λ such that the margin is just closed."""
    weights, x = torch.tensor([2.0, -1.0, 0.5, 0.1], dtype=torch.float64), draw(5, 1, 4)
    offset, beta = float(x[0] @ weights) + 1.5, 0.6

    def predict(z: Tensor) -> Tensor:
        score = z @ weights - offset
        return torch.stack([torch.zeros_like(score), score], 1)

    def reached(multiplier: float) -> float:
        moves = (multiplier * weights.abs() - beta).clamp_min(0) / 2
        return float((moves * weights.abs()).sum()) - 1.5

    multiplier = brentq(reached, 0, 100)
    moves = weights.sign() * (multiplier * weights.abs() - beta).clamp_min(0) / 2
    assert (moves == 0).sum() >= 1
    y = torch.zeros(1, dtype=torch.long)
    found = ElasticNet(predict, beta=beta, size=0.1, search=Search(1.0, rounds=7, steps=60)).perturb(x, y) - x
    assert predict(x + found).argmax(1).item() == 1
    torch.testing.assert_close(found[0], moves, rtol=0.05, atol=0.02)
    assert (found[0] == 0).sum() == (moves == 0).sum()


def test_confidence_asks_for_more(linear: tuple[Linear, Tensor, Tensor]) -> None:
    model, x, y = linear
    found = CarliniWagner(model, search=Search(1.0, rounds=3, steps=80), size=0.05, confidence=1.0).perturb(
        x, y
    )
    assert (margin(model(found), y) >= 1.0).all()


def test_where_nothing_fools_the_input_comes_back() -> None:
    def constant(x: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(x[:, 0]), 0 * x[:, 0]], 1)

    x, y = draw(0, 3, 2), torch.zeros(3, dtype=torch.long)
    search = Search(rounds=2, steps=5)
    ways: list[Any] = [CarliniWagner(constant, search=search), ElasticNet(constant, search=search)]
    for attack in (*ways, DDN(constant)):
        assert torch.equal(attack.perturb(x, y), x)


# --- boxes


def test_everything_stays_in_the_box(linear: tuple[Linear, Tensor, Tensor]) -> None:
    model, _, _ = linear
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, box, loss = model(x).argmax(1), Box(0.0, 1.0), cross_entropy
    attacks: list[Any] = [
        fgsm(model, loss, 0.5, box=box),
        fgm(model, loss, 0.5, box=box),
        *(pgd(model, loss, kind(0.5), box=box) for kind in BALLS),
        momentum(model, loss, LInf(0.5), box=box),
        nes(model, loss, LInf(0.5), steps=5, box=box),
        spsa(model, loss, LInf(0.5), steps=5, box=box),
        NAttack(model, ball=LInf(0.5), walk=Walk(5, 0.02), population=10, box=box),
        CarliniWagner(model, search=Search(rounds=3, steps=50), size=0.1, box=box),
        ElasticNet(model, search=Search(rounds=3, steps=50), box=box),
        DDN(model, steps=50, box=box),
        DeepFool(model, box=box),
    ]
    for attack in attacks:
        found = attack.perturb(x, y)
        assert found.shape == x.shape
        assert ((found >= 0) & (found <= 1)).all(), attack
        assert not found.requires_grad
        assert (loss(model(found), y) >= loss(model(x), y) - 1e-9).all(), attack


def test_a_box_maps_there_and_back() -> None:
    x = torch.linspace(-1, 3, 9, dtype=torch.float64)
    box = Box(-1.0, 3.0)
    torch.testing.assert_close(box.inside(box.outside(x)), x, rtol=0, atol=1e-5)
    assert torch.equal(Box().inside(Box().outside(x)), x)


# --- sequences


def test_losses_of_sequences_leave_out_what_does_not_count() -> None:
    logits, labels = draw(0, 2, 3, 5), torch.tensor([[1, 2, -100], [0, 4, 3]])
    short = cross_entropy(logits[:1, :2], labels[:1, :2])
    torch.testing.assert_close(cross_entropy(logits, labels)[:1], short)
    torch.testing.assert_close(margin(logits, labels)[:1], margin(logits[:1, :2], labels[:1, :2]))
    said = logits.argmax(-1)
    assert (margin(logits, said) < 0).all()
    wrong = said.clone()
    wrong[1, 1] = (said[1, 1] + 1) % 5
    assert (margin(logits, wrong) > 0).tolist() == [False, True]


# --- classifiers


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data / 16), torch.tensor(data.target)


@pytest.mark.parametrize("kind", BALLS)
def test_robust_accuracy_of_a_binary_linear_classifier_is_exact(
    digits: tuple[Tensor, Tensor], kind: Any
) -> None:
    x, y = digits[0][digits[1] < 2], digits[1][digits[1] < 2]
    fitted = LogisticRegression(C=0.05).fit(x.numpy(), y.numpy())
    weights, offset = torch.tensor(fitted.coef_[0]), float(fitted.intercept_[0])

    def predict(z: Tensor) -> Tensor:
        score = z @ weights + offset
        return torch.stack([-score, score], 1)

    distances = (x @ weights + offset) * (2 * y - 1) / weights.norm(p=DUAL[kind])
    radius = float(distances.quantile(0.6))
    known = (distances > radius).double().mean()
    walk = Walk(40, radius / 4)
    found = ProjectedGradient(predict, cross_entropy, kind(radius), walk).perturb(x, y)
    assert 0.3 < float(known) < 0.5
    assert (predict(found).argmax(1) == y).double().mean() == known


@pytest.fixture(scope="module")
def network(digits: tuple[Tensor, Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(120):
        adam.zero_grad()
        nn.functional.cross_entropy(model(digits[0]), digits[1]).backward()
        adam.step()
    return model.requires_grad_(False)


def test_robust_accuracies_of_a_network_are_ordered(
    digits: tuple[Tensor, Tensor], network: nn.Sequential
) -> None:
    """Certified by the Lipschitz constant <= minimal attacks <= PGD <= FGM <= clean."""
    x, y = digits[0][:200], digits[1][:200]
    radius = 0.5

    def accuracy(points: Tensor) -> float:
        return float((network(points).argmax(1) == y).double().mean())

    norms = [float(torch.linalg.matrix_norm(network[i].weight, 2)) for i in (0, 2)]
    certified = float((-margin(network(x), y) > 2**0.5 * norms[0] * norms[1] * radius).double().mean())
    clean = accuracy(x)
    one_step = accuracy(fgm(network, cross_entropy, radius).perturb(x, y))
    many = accuracy(pgd(network, cross_entropy, L2(radius), steps=40).perturb(x, y))
    lengths = L2().norm(DDN(network, steps=200).perturb(x, y) - x)
    fooled = (network(x).argmax(1) != y) | (lengths <= radius)
    minimal = float((~fooled).double().mean())
    assert clean > 0.95
    assert certified <= minimal <= many + 0.005
    assert many <= one_step <= clean
    assert many < 0.7 * clean


def test_targeted_attacks_reach_their_target(digits: tuple[Tensor, Tensor], network: nn.Sequential) -> None:
    x, y = digits[0][:40], (digits[1][:40] + 1) % 10
    box = Box(0.0, 1.0)
    ways: list[Any] = [
        pgd(network, cross_entropy, L2(2.5), targeted=True, box=box),
        DDN(network, targeted=True, box=box),
        CarliniWagner(network, search=Search(rounds=5, steps=60), size=0.1, targeted=True, box=box),
        DeepFool(network, targeted=True),
    ]
    for attack in ways:
        assert (network(attack.perturb(x, y)).argmax(1) == y).double().mean() > 0.9, attack


# --- bad input


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: L2(0.0), "`radius` must be positive; got 0"),
        (lambda: L1(1.0, spread=2.0), "`spread` must be in"),
        (lambda: Walk(0), "`steps` must be at least 1; got 0"),
        (lambda: Walk(size=0.0), "`size` must be positive; got 0"),
        (lambda: Walk(momentum=-1.0), "`momentum` must not be negative"),
        (lambda: NES(pairs=0), "`pairs` must be at least 1; got 0"),
        (lambda: SPSA(delta=0.0), "must be positive; got 0"),
        (lambda: Box(1.0, 0.0), "`low` must be below `high`"),
        (lambda: Search(rounds=0), "`rounds` must be at least 1; got 0"),
        (lambda: Search(constant=0.0), "`constant` must be positive"),
        (lambda: DDN(Linear(), gamma=1.0), "`gamma` must be in"),
        (lambda: DDN(Linear(), steps=0), "`steps` must be at least 1"),
        (lambda: DDN(Linear(), scale=0.0), "`scale` must be positive"),
        (lambda: CarliniWagner(Linear(), size=0.0), "`size` must be positive"),
        (lambda: ElasticNet(Linear(), beta=-1.0), "`beta` must not be negative"),
        (lambda: DeepFool(Linear(), steps=0), "`steps` must be at least 1"),
        (lambda: DeepFool(Linear(), overshoot=-1.0), "`overshoot` must not be negative"),
        (lambda: NAttack(Linear(), ball=L2(1.0), population=1), "`population` must be at least 2"),
        (lambda: NAttack(Linear(), ball=L2(1.0), walk=Walk(momentum=1.0)), "no momentum"),
        (lambda: pgd(Linear(), cross_entropy, L2()), "finite radius"),
        (lambda: pgd(Linear(), cross_entropy, L2(1.0), steps=0), "`steps` must be at least 1"),
    ],
)
def test_budgets_are_checked(make: Callable[[], Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()


def test_inputs_are_checked(linear: tuple[Linear, Tensor, Tensor]) -> None:
    model, x, y = linear
    attack = pgd(model, cross_entropy, L2(1.0))
    with pytest.raises(ValueError, match="one label per example; got 3 for 12"):
        attack.perturb(x, y[:3])
    with pytest.raises(ValueError, match="one loss per example"):
        pgd(model, nn.functional.cross_entropy, L2(1.0)).perturb(x, y)
