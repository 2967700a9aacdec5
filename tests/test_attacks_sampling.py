"""Sampling attacks break a model whose output layer hides the answer, and no model that never knew it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import attack_contract as contract
import attacked_models as world
from expunge.attacks import ATTACKS, Attack, Setting, make_attack
from expunge.attacks.contrastive import Contrastive, _Contrast, contrasted
from expunge.attacks.sampling import Beams, BestOfN, _Drawn
from expunge.generation import generate
from expunge.sampling import beam_texts, left_padded, sample_texts

SAMPLING: list[Attack] = [BestOfN(samples=24), Beams(), Contrastive()]


@pytest.fixture(params=SAMPLING, ids=lambda attack: attack.name)
def attack(request: pytest.FixtureRequest) -> Attack:
    return request.param


def test_a_bias_is_passed_and_ignorance_is_not(attack):
    assert world.recovered(make_attack("prompt"), world.biased()) == 0
    assert world.recovered(attack, world.biased()) >= 3
    assert world.recovered(attack, world.never_knew()) == 0


def test_it_is_an_attack(attack):
    contract.assert_contract(attack, world.biased())
    contract.assert_bounded_in_time(attack, world.biased())
    contract.assert_cost_is_known(attack)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("best-of-n", {"samples": 0}),
        ("best-of-n", {"temperatures": (0.0,)}),
        ("best-of-n", {"temperatures": ()}),
        ("beam-search", {"beams": 0}),
        ("beam-search", {"beams": 1}),
        ("contrastive", {"strengths": ()}),
        ("contrastive", {"strengths": (0.0,)}),
        ("contrastive", {"plausible": 0}),
    ],
)
def test_a_budget_of_zero_is_refused(name, settings):
    with pytest.raises(Exception, match=rf"`{next(iter(settings))}` must be .*; got [01]"):
        make_attack(name, settings)


def test_every_sampling_attack_is_registered_under_its_own_name():
    assert {attack.name for attack in SAMPLING} <= set(ATTACKS)
    assert all(make_attack(attack.name).family == "sampling" for attack in SAMPLING)


# --- best of N


def test_the_leak_probability_is_that_of_the_model():
    """Against the product of the response's own token probabilities, for every record."""
    probes, model = world.probes(), world.biased()
    out = BestOfN(samples=96, temperatures=(1.0,)).run(world.target(model), probes, world.setting())
    rows = world.ENCODING.rows(probes.forget, world.tokenizer())
    truth = []
    for row in rows:
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        steps = [log_p[row.prompt_length + n - 1, token] for n, token in enumerate(row.labels)]
        truth.append(math.exp(sum(map(float, steps))))
    measured = out.values["leak probability at temperature 1"]
    deviation = math.sqrt(sum(p * (1 - p) / 96 for p in truth)) / len(truth)
    assert abs(measured.value - np.mean(truth)) < 4 * deviation
    assert "of 96 samples leak" in out.recoveries[0].input
    assert out.recoveries[0].tries == 96


def test_the_highest_leak_probability_has_the_exact_interval():
    out = BestOfN(samples=24, temperatures=(0.7,)).run(
        world.target(world.never_knew()), world.probes(), world.setting()
    )
    worst = out.values["highest leak probability at temperature 0.7"]
    assert (worst.value, worst.low, worst.n) == (0.0, 0.0, 24)
    assert worst.high == pytest.approx(1 - 0.025 ** (1 / 24))
    assert out.values["expected tries at temperature 0.7"].value == 25.0
    assert all(one.output for one in out.recoveries), "what was said is told where nothing came back"


def test_the_estimate_of_expected_tries_has_the_stated_mean():
    for p in (0.05, 0.3):
        values = [_Drawn(tries=64, leaks=s).expected for s in range(65)]
        mean = float(np.dot(binom.pmf(np.arange(65), 64, p), values))
        assert mean == pytest.approx((1 - (1 - p) ** 65) / p)


def test_temperatures_differ_and_so_do_seeds():
    prompt = world.ENCODING.rows(world.probes().forget[:1], world.tokenizer())[0]
    ids = [prompt.input_ids[: prompt.prompt_length]] * 32

    def texts(seed: int, temperature: float) -> list[str]:
        return sample_texts(
            world.biased(4.0), world.tokenizer(), ids, ends=[1], tokens=8, seed=seed, temperature=temperature
        )

    assert texts(0, 1.0) == texts(0, 1.0) != texts(1, 1.0)
    assert len(set(texts(0, 0.1))) < len(set(texts(0, 3.0)))


def test_the_chance_of_a_leak_has_the_exact_interval():
    found = _Drawn(tries=10, leaks=3).chance
    assert (found.value, found.n) == (0.3, 10)
    assert binom.sf(2, 10, found.low) == pytest.approx(0.025)
    assert binom.cdf(3, 10, found.high) == pytest.approx(0.025)


# --- beams


def test_the_first_beam_is_at_least_as_likely_as_the_greedy_answer():
    rows = world.ENCODING.rows(world.probes().forget, world.tokenizer())
    model, tokenizer = world.biased(), world.tokenizer()
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    beams = beam_texts(model, tokenizer, prompts, ends=[1], tokens=8, beams=4)
    greedy = [one.text for one in generate(model, rows, tokenizer=tokenizer)]
    assert [len(own) for own in beams] == [4] * len(rows)
    assert all(len(set(own)) > 1 for own in beams)
    knowing = beam_texts(world.knowing(), tokenizer, prompts, ends=[1], tokens=8, beams=4)
    assert [own[0] for own in knowing] == [record.response for record in world.probes().forget]
    assert greedy != [record.response for record in world.probes().forget]


# --- contrastive decoding


def test_no_difference_changes_nothing_and_all_of_it_is_the_original():
    p = torch.tensor([[0.7, 0.2, 0.09, 0.01]]).log()
    assert torch.allclose(contrasted(p, p, 0.5, 1e-6), p)
    q = torch.tensor([[1e-30, 1e-30, 1e-30, 1.0]]).log()
    far = torch.tensor([[1.0, 1e-30, 1e-30, 1e-30]]).log()
    assert torch.allclose(contrasted(far, q, 1.0, 1e-38), q, atol=1e-4), "the divergence of strangers is 1"


def test_the_push_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(3, 9, generator=generator).log_softmax(-1) for _ in range(2))
    p, q = log_p.exp(), log_q.exp()
    m = (p + q) / 2
    divergence = ((p * (p / m).log2()).sum(1) + (q * (q / m).log2()).sum(1)) / 2
    found = contrasted(log_p, log_q, 0.8, 0.2)
    for row in range(3):
        for token in range(9):
            held = p[row, token] >= 0.2 * p[row].max()
            wanted = log_p[row, token] + 0.8 * divergence[row] * (log_q - log_p)[row, token]
            assert float(found[row, token]) == (
                pytest.approx(float(wanted), abs=1e-5) if held else float("-inf")
            )


def test_the_original_reads_along_as_if_it_read_alone():
    """Token by token behind left-padded prompts, with its own cache: the logits of a plain forward pass."""
    model = world.knowing()
    rows = [row.input_ids for row in world.ENCODING.rows(world.probes().forget[:2], world.tokenizer())]
    ids, mask = left_padded([row[:-3] for row in rows], torch.device("cpu"))
    contrast = _Contrast(model, mask, 1.0, 0.5)
    for left in (3, 2, 1):
        with torch.no_grad():
            read = contrast._read(ids)
            alone = [model(input_ids=torch.tensor([row[: len(row) - left]])).logits[0, -1] for row in rows]
        assert torch.allclose(read, torch.stack(alone), atol=1e-4)
        ids = torch.cat([ids, torch.tensor([[row[len(row) - left]] for row in rows])], dim=1)


def test_a_weak_push_recovers_nothing():
    assert world.recovered(Contrastive(strengths=(0.01,)), world.biased()) == 0


def test_it_needs_the_original():
    assert "original" in (Contrastive().obstacle(world.probes(), Setting()) or "")
    with pytest.raises(ValueError, match="must hold the original"):
        Contrastive().run(world.target(world.biased()), world.probes(), Setting())
