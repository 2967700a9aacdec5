"""Arithmetic on weight changes against loops in float64 and against peft; phases on bare parameters."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import conftest
from expunge.merging import TIES, Merge, Sum
from expunge.methods import Method, task_vector, ties_merge
from expunge.objectives import NLL, Ascent
from expunge.phases import Phases
from expunge.step_sizes import GeN
from expunge.stopping import RetainBudget
from expunge.weightings import Constant, DualAscent


def ties_by_hand(changes: list[list[float]], density: float) -> list[float]:
    """Algorithm 1 of arXiv 2306.01708, entry by entry."""
    size = len(changes[0])
    kept = []
    for change in changes:
        order = sorted(range(size), key=lambda i: -abs(change[i]))[: max(1, int(density * size))]
        kept.append([change[i] if i in order else 0.0 for i in range(size)])
    merged = []
    for entries in zip(*kept, strict=True):
        mass = math.fsum(entries)
        agreeing = [x for x in entries if x * mass > 0]
        merged.append(math.fsum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 40),
    count=st.integers(1, 4),
    density=st.floats(0.05, 1.0),
)
def test_ties_is_the_published_algorithm(seed, size, count, density):
    draw = random.Random(seed)
    changes = [[draw.gauss(0, 1) for _ in range(size)] for _ in range(count)]
    found = TIES(density)(torch.tensor(changes, dtype=torch.float64))
    expected = torch.tensor(ties_by_hand(changes, density), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_ties_is_that_of_peft(density):
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    changes = torch.randn(2, 8, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = merge_utils.ties(list(changes), torch.ones(2), density)
    torch.testing.assert_close(TIES(density)(changes), expected, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_two_adapters_merge_as_in_the_authors_script():
    """Their `add_weighted_adapter(["model1", "model2"], [1, 1], combination_type="ties", density=0.8)`."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(conftest.build_model(), config, "one")
    model.add_adapter("two", config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="ties", density=0.8)
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert len(layers) == 4
    for layer in layers:
        first, second = (
            TIES(0.8)(torch.stack([f["one"].weight.data, f["two"].weight.data]))
            for f in (layer.lora_A, layer.lora_B)
        )
        torch.testing.assert_close(layer.scaling["one"] * second @ first, layer.get_delta_weight("both").data)


def test_ties_laws():
    """One change at density 1 is itself; the order does not matter; scale comes through; conflict cancels."""
    changes = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(TIES(1.0)(changes[:1]), changes[0])
    torch.testing.assert_close(TIES(0.5)(changes.flip(0)), TIES(0.5)(changes))
    torch.testing.assert_close(TIES(0.5)(-3 * changes), -3 * TIES(0.5)(changes))
    assert not TIES(1.0)(torch.stack([changes[0], -changes[0]])).any()
    assert torch.equal(TIES(0.5)(torch.zeros(2, 3)), torch.zeros(3))


def train(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def plain() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(9)
    return {
        "w": nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64)),
        "b": nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)),
    }


def adapter() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(9)
    first = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return {
        "q.lora_A.default.weight": nn.Parameter(first),
        "q.lora_B.default.weight": nn.Parameter(torch.zeros(4, 2, dtype=torch.float64)),
    }


def test_negation_is_the_equation():
    named = plain()
    start = {name: p.detach().clone() for name, p in named.items()}
    phases = Phases(Merge(Sum(), (-1.0, -0.25)), named)
    phases.begin()
    train(named, 0)
    learned = {name: p.detach().clone() for name, p in named.items()}
    for alpha in (1.0, 0.25, 0.7):
        phases.place(-alpha)
        for name, p in named.items():
            torch.testing.assert_close(p.data, start[name] - alpha * (learned[name] - start[name]))
    phases.rewind()
    assert all(torch.equal(p, start[name]) for name, p in named.items())


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_negation_of_an_adapter_turns_its_product(alpha):
    named = adapter()
    phases = Phases(Merge(Sum(), (-alpha,)), named)
    phases.begin()
    train(named, 0)
    first, second = named.values()
    learned = (second @ first).detach()
    phases.place(-alpha)
    torch.testing.assert_close((second @ first).detach(), -alpha * learned)


@pytest.mark.parametrize("make", [plain, adapter])
def test_two_trainings_from_one_start_merge_by_ties(make, tmp_path):
    """Also when what the first one changed has been on disk in between."""
    named = make()
    start = {name: p.detach().clone() for name, p in named.items()}
    merge = Merge(TIES(0.6), (0.5,), further=(Constant((1.0,)),))
    phases = Phases(merge, named)
    phases.begin()
    ended = [step for step in range(1, 8) if phases.ended(step, 7)]
    assert ended == [3, 4, 5, 6, 7]
    train(named, 0)
    phases.advance()
    assert not any(phases.ended(step, 7) for step in range(1, 8))
    assert all(torch.equal(p, start[name]) for name, p in named.items())
    phases.save(tmp_path)
    train(named, 1)
    resumed = Phases(merge, make())
    resumed.begin()
    resumed.parameters = phases.parameters
    resumed.load(tmp_path)
    resumed.place(0.5)
    for seed, found in ((0, make()), (1, make())):
        train(found, seed)
        named |= {f"{seed}.{name}": p for name, p in found.items()}
    for name, zero in start.items():
        base = torch.zeros_like(zero) if "lora_A" in name else zero
        pair = [named[f"{seed}.{name}"].detach() - base for seed in (0, 1)]
        flat = [change.flatten().tolist() for change in pair]
        merged = torch.tensor(ties_by_hand(flat, 0.6), dtype=torch.float64).reshape(zero.shape)
        expected = merged if "lora_A" in name else base + 0.5 * merged
        torch.testing.assert_close(named[name].data, expected, rtol=1e-12, atol=1e-12)


FORGET = (NLL("forget"),)
ONE = Constant((1.0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TIES(0.0), r"`density` must be in \(0, 1\]"),
        (lambda: TIES(1.5), r"`density` must be in \(0, 1\]"),
        (lambda: Merge(Sum(), ()), "`coefficients` must be at least one"),
        (lambda: Merge(Sum(), (0.0,)), "`coefficients` must be at least one"),
        (lambda: Merge(Sum(), (1.0,), (DualAscent((1.0,), (0.3,)),)), "without memory; DualAscent"),
        (lambda: task_vector(alpha=-0.5), "`alpha` must be positive"),
        (lambda: task_vector(tolerance=0.0), "`tolerance` must be positive"),
        (lambda: ties_merge(density=2.0), "`density` must be in"),
        (lambda: ties_merge(beta=0.0), "`beta` must be positive"),
        (
            lambda: Method("x", FORGET, ONE, merge=Merge(Sum(), (-1.0, -0.5))),
            "must have a budget to choose among 2",
        ),
        (
            lambda: Method("x", FORGET, ONE, merge=Merge(Sum(), (1.0,), (Constant((1.0, 1.0)),))),
            "one weight per objective",
        ),
        (
            lambda: Method(
                "x", (Ascent(NLL("retain")),), ONE, GeN(), RetainBudget(), merge=Merge(Sum(), (1.0,))
            ),
            "must have no step size rule",
        ),
        (
            lambda: Method("x", FORGET, DualAscent((1.0,), (0.3,)), merge=Merge(Sum(), (1.0,))),
            "no weighting with a memory",
        ),
        (
            lambda: Phases(Merge(Sum(), (1.0,), (ONE,)), adapter()),
            "a sum of factors is no sum of products",
        ),
        (
            lambda: Phases(
                Merge(Sum(), (1.0,)), adapter() | {"q.lora_magnitude_vector": nn.Parameter(torch.ones(2))}
            ),
            "got q.lora_magnitude_vector",
        ),
        (
            lambda: Phases(Merge(Sum(), (1.0,)), {n: nn.Parameter(p + 1) for n, p in adapter().items()}),
            "an adapter that changes nothing yet",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_read_what_they_need():
    assert task_vector().sources == ("forget", "retain")
    assert task_vector(alpha=1.0).sources == ("forget",)
    assert task_vector().merge.coefficients[:2] == (-1.0, -0.95)
    assert task_vector().merge.coefficients[-1] == -0.05
    method = ties_merge()
    assert [objective.name for objective in method.objectives] == ["npo(forget)", "nll(retain)", "kl(retain)"]
    assert method.weighting == Constant((0.4, 0.4, 0.2))
    assert method.merge == Merge(TIES(0.8), (1.0,), (Constant((0.3, 0.3, 0.4)),))
