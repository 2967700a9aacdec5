"""Every recipe on two convex bowls: the forget loss rises, and it comes to rest where theory says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import bowls
from bowls import FORGET, RETAIN, START
from expunge import methods
from expunge.methods import METHODS, Method

WORDS = np.eye(3)

# Recipes whose defaults have no optimum here, or none worth seeing, with arguments under which they do.
MAKE: dict[str, Callable[[], Method]] = dict(METHODS) | {
    "grad-diff": lambda: methods.grad_diff(retain_weight=4.0),  # at 1 the difference of two bowls is linear
    "kl-min": lambda: methods.kl_min(retain_weight=4.0),
    "npo": lambda: methods.npo(retain_weight=4.0),
    "dpo": lambda: methods.dpo(retain_weight=4.0),
    "alt-po": lambda: methods.alt_po(retain_weight=4.0),
    "ce-u": lambda: methods.ce_u(skip=0),  # responses have one token
    "rmu": lambda: methods.rmu(layer=1, retain_weight=1.0),  # the one block there is
    "pdu": lambda: methods.pdu(
        bound=1.05, retain_weight=1.0, rate=0.05
    ),  # between L_R's least and at flat logits
    "task-vector": lambda: methods.task_vector(alpha=1.0),
}
STEPS = {"pdu": 600, "satimp": 600}  # a multiplier that settles slowly; a retain weight of 0.1


def against(weights: np.ndarray | float, retain: float = 4.0) -> np.ndarray:
    """Where α(p − q_R) = Σ_y W_y q_F(y) (p − e_y): an ascent on log p(y) that is weighted by W."""
    pushed = weights * FORGET
    return (retain * RETAIN - pushed) / (retain - pushed.sum())


def preferred(pairs: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Where 4(p − q_R) = Σ_y V_y q_F(y) (e_k − e_y), with V = 2σ(−β(r_k − r_y)) and β = 0.1."""
    gain = np.log(p / START)
    pull = 2 / (1 + np.exp(0.1 * (pairs @ gain - gain)))
    return RETAIN + (pull * FORGET) @ (pairs - WORDS) / 4


def hinge(p: np.ndarray) -> np.ndarray:
    """Where p − q_R = −Σ_y q_F(y) (p_y (e_y − p) − p_m (e_m − p)), m being the likeliest other word."""
    other = [max((v for v in range(3) if v != y), key=lambda v: p[v]) for y in range(3)]
    pull = [p[y] * (WORDS[y] - p) - p[m] * (WORDS[m] - p) for y, m in enumerate(other)]
    return RETAIN - FORGET @ np.array(pull)


def teacher() -> np.ndarray:
    """The reference without (all but e⁻¹⁰ of) the target, averaged over the targets."""
    lowered = START * np.exp(-10 * WORDS)
    return FORGET @ (lowered / lowered.sum(1, keepdims=True))


def steered() -> np.ndarray:
    """Halfway, in θ, between the start and the aim of RMU: two squared distances of equal weight."""
    objective = MAKE["rmu"]().objectives[0]
    aim = objective.coefficient * objective.direction(2).numpy()
    place = (aim + np.log(START[:2] / START[2])) / 2
    odds = np.exp([*place, 0.0])
    return odds / odds.sum()


# The probabilities at rest, as a function that maps them onto themselves (constant where they are explicit).
AT_REST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grad-diff": lambda p: against(1.0),
    "kl-min": lambda p: (4 * START - FORGET) / 3,
    "sugd": lambda p: against(1.0, retain=3.5),
    "idk-sft": lambda p: (WORDS[0] + RETAIN) / 2,
    "dpo": lambda p: preferred(WORDS[[0, 0, 0]], p),
    "alt-po": lambda p: preferred(WORDS[[1, 2, 0]], p),
    "npo": lambda p: against(2 * p**0.1 / (p**0.1 + START**0.1)),
    "simnpo": lambda p: against(0.1375 * 2 * p**2.5 / (1 + p**2.5), retain=1.0),
    "wga": lambda p: against(p, retain=1.0),
    "satimp": lambda p: against(p**5 * (1 - p), retain=0.1),
    "ihl": hinge,
    "me": lambda p: RETAIN - 0.1 * p * (np.log(p) - p @ np.log(p)),
    "undial": lambda p: teacher(),
    "rmu": lambda p: steered(),
    "task-vector": lambda p: START**2 / FORGET / (START**2 / FORGET).sum(),  # θ = 2θ₀ − θ_F
}


@pytest.fixture(scope="module")
def settled() -> Callable[[str], np.ndarray]:
    """Probabilities of the words after a recipe has run; every recipe runs once."""
    found: dict[str, np.ndarray] = {}

    def run(name: str) -> np.ndarray:
        if name not in found:
            model = bowls.Bowls()
            bowls.unlearn(model, MAKE[name](), STEPS.get(name, 150))
            found[name] = model.probabilities
        return found[name]

    return run


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_raises_the_forget_loss(name, settled):
    assert bowls.nll(FORGET, settled(name)) > bowls.nll(FORGET, START) + 0.02


@pytest.mark.parametrize("name", AT_REST)
def test_it_comes_to_rest_at_the_known_optimum(name, settled):
    found = settled(name)
    assert found == pytest.approx(AT_REST[name](found), abs=3e-4)


def slopes(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the forget NLL and the retain NLL on (θ₁, θ₂)."""
    return (found - FORGET)[:2], (found - RETAIN)[:2]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_ngdiff_as_published_rests_where_no_direction_tells_forget_from_retain(settled):
    """g_R/|g_R| = g_F/|g_F|: on the line through both optima, on the far side of the retain optimum."""
    found = settled("ngdiff-gen")
    assert cosine(*slopes(found)) == pytest.approx(1, abs=1e-3)
    assert bowls.nll(RETAIN, found) < bowls.nll(FORGET, found)


def test_ngdiff_rests_on_the_front(settled):
    """The unit gradients of unlearning cross-entropy and retain NLL cancel out."""
    found = settled("ngdiff")
    pushed = found / (1 - found) * FORGET  # −log(1 − p_y) has slope p_y (e_y − p) / (1 − p_y)
    forgetting = (pushed - pushed.sum() * found)[:2]
    assert cosine(forgetting, slopes(found)[1]) == pytest.approx(-1, abs=1e-3)


def test_ce_u_nears_its_optimum_and_rests_there(settled):
    """Where Σ_{y≠v} q_F(y) / (1 − p_y) = 1 for every v; its rare word is slow to settle."""
    model, optimum = bowls.Bowls(), 1 - 2 * FORGET
    assert settled("ce-u") == pytest.approx(optimum, abs=0.1)
    model.place.data = torch.tensor(np.log(optimum[:2] / optimum[2]))
    bowls.unlearn(model, MAKE["ce-u"](), steps=20)
    assert model.probabilities == pytest.approx(optimum, abs=1e-12)


def test_pdu_ends_at_its_bound(settled):
    """Flat logits would break the bound, so that it is met with equality."""
    found = settled("pdu")
    assert bowls.nll(RETAIN, np.full(3, 1 / 3)) > 1.05
    assert bowls.nll(RETAIN, found) == pytest.approx(1.05, abs=5e-3)


def test_without_a_forget_objective_it_rests_at_the_retain_optimum():
    """What retraining would give."""
    model = bowls.Bowls()
    assert model.probabilities == pytest.approx(START)
    bowls.unlearn(model, methods.fine_tune())
    assert model.probabilities == pytest.approx(RETAIN, abs=1e-6)
