"""Sharpness-aware and latent adversarial forgetting against their formulas, and inside the engine."""

from __future__ import annotations

import copy
import doctest
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import conftest
import expunge
from expunge.arguments import UnlearningArguments
from expunge.collate import collate, encode
from expunge.defences import sharpness
from expunge.defences.hardening import Hardening
from expunge.defences.latent import Latent, shifted
from expunge.defences.sharpness import uphill
from expunge.hidden import residual_stream
from expunge.methods import Method, grad_diff, ngdiff, npo
from expunge.methods.difference import fine_tune
from expunge.objectives import NLL, Ascent
from expunge.observation import token_logits
from expunge.records import read_records
from expunge.settings import configuration
from expunge.unlearner import Unlearner
from expunge.weightings import Constant
from expunge.weights import weights_norm

FORGET, RETAIN = conftest.rows()[:6], conftest.rows()[6:]
NORM = math.sqrt(sum(float(p.detach().double().square().sum()) for p in conftest.build_model().parameters()))


def run(tokenizer, folder: Path, method: Method, **settings) -> Unlearner:
    defaults = {
        "output_dir": str(folder), "bf16": False, "template": "none", "max_steps": 1, "save_strategy": "no",
        "learning_rate": 1e-2, "check_every": 0, "optim": "sgd", "per_device_train_batch_size": 16,
        "diagnose_every": 0,
    }  # fmt: skip
    made = Unlearner(
        model=conftest.build_model(),
        args=UnlearningArguments(**defaults | settings),
        method=method,
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
    )
    made.train()
    return made


def batch(tokenizer, rows) -> dict[str, torch.Tensor]:
    return collate(encode(read_records(rows, name="x"), tokenizer, template="none"), tokenizer.pad_token_id)


def nll(model, tokenizer, rows) -> torch.Tensor:
    return NLL()(token_logits(model, batch(tokenizer, rows))).mean()


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def slope(model, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()))])


def moved(model, direction: torch.Tensor):
    """A copy of a model with its parameters moved."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        nn.utils.vector_to_parameters(flat(model) + direction, other.parameters())
    return other


def test_sharpness_gradient_of_a_quadratic_is_that_at_the_point_uphill():
    """L = θᵀAθ/2: the gradient becomes A(θ + ρ Aθ/‖Aθ‖)."""
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, p = root.T @ root, nn.Parameter(torch.arange(1.0, 6.0, dtype=torch.float64))
    before, gradient = p.detach().clone(), (matrix @ p).detach()
    with uphill([p], [gradient], 0.3):
        inside = torch.autograd.grad(p @ matrix @ p / 2, p)[0]
    torch.testing.assert_close(inside, matrix @ (before + 0.3 * gradient / gradient.norm()))
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("gradient", [[torch.zeros(3)], [None], [torch.tensor([1.0, torch.nan, 0.0])]])
def test_a_gradient_without_a_direction_moves_nothing(gradient):
    p = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))
    before = p.detach().clone()
    with uphill([p], gradient, 1.0):
        assert torch.equal(p.detach(), before)


def test_parameters_come_back_bit_for_bit_after_an_error():
    p = nn.Parameter(torch.tensor([0.1, 1e7, 1e-9]))
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), uphill([p], [torch.ones(3)], 0.5):
        raise RuntimeError("inside")
    assert torch.equal(p.detach(), before)


def test_docstrings_run():
    assert doctest.testmod(sharpness).failed == 0


def test_sharpness_aware_step_is_the_formula(tokenizer, tmp_path):
    """θ − η (g_R(θ) + g_F(θ + ρ g_F/‖g_F‖)): only the forget gradient is taken elsewhere."""
    start = conftest.build_model()
    g_f = slope(start, -nll(start, tokenizer, FORGET))
    there = moved(start, 0.3 * g_f / g_f.norm())
    sharp = slope(there, -nll(there, tokenizer, FORGET))
    assert not torch.allclose(sharp, g_f, rtol=1e-2, atol=1e-4)
    expected = flat(start) - 1e-2 * (slope(start, nll(start, tokenizer, RETAIN)) + sharp)
    trained = run(tokenizer, tmp_path, grad_diff(), sharpness=0.3)
    torch.testing.assert_close(flat(trained.model), expected, rtol=1e-5, atol=1e-7)
    assert trained.history[0].losses["-nll(forget)"] == pytest.approx(-nll(start, tokenizer, FORGET).item())


def test_under_autocast_the_sharp_pass_does_not_use_weights_cast_before(tokenizer, tmp_path):
    plain, sharp = (run(tokenizer, tmp_path, grad_diff(), sharpness=s, bf16=True) for s in (0.0, 0.3))
    step = flat(sharp.model) - flat(plain.model)
    exact = flat(run(tokenizer, tmp_path, grad_diff(), sharpness=0.3).model)
    wanted = exact - flat(run(tokenizer, tmp_path, grad_diff()).model)
    assert float(step @ wanted / (step.norm() * wanted.norm())) > 0.9


@pytest.mark.parametrize(
    "settings", [{"sharpness": 0.3}, {"latent_radius": 0.5, "latent_layers": "1", "latent_steps": 2}]
)
def test_hardened_steps_do_not_depend_on_accumulation(tokenizer, tmp_path, settings):
    method = Method("d", (Ascent(NLL("forget")), NLL("forget")), Constant((1.0, 0.5)))
    whole = run(tokenizer, tmp_path, method, per_device_train_batch_size=6, **settings)
    parts = run(
        tokenizer, tmp_path, method, per_device_train_batch_size=3, gradient_accumulation_steps=2, **settings
    )
    torch.testing.assert_close(flat(whole.model), flat(parts.model), rtol=1e-4, atol=1e-6)


def prompts(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    return (rows["labels"] == -100) & rows["attention_mask"].bool()


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_one_latent_step_is_epsilon_times_the_unit_gradient_of_each_token(tokenizer, layer):
    model, rows = conftest.build_model(), batch(tokenizer, FORGET)
    zero = torch.zeros(*rows["labels"].shape, 48, requires_grad=True)
    with shifted(model, {layer: zero}):
        value = -NLL()(token_logits(model, rows)).mean()
    gradient = torch.autograd.grad(value, zero)[0]
    unit = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    found = Latent((layer,), 0.4, steps=1).worst(
        model, prompts(rows), lambda: -NLL()(token_logits(model, rows)).mean()
    )[layer]
    torch.testing.assert_close(found, 0.4 * unit * prompts(rows)[..., None], rtol=1e-4, atol=1e-6)
    if layer != -1:  # what leaves the last block at a prompt token is read at its last token only
        assert (found.norm(dim=-1)[prompts(rows)] > 0.39).all()


def test_the_adversary_brings_the_answer_closer_and_stays_within_its_ball(tokenizer):
    model, rows = conftest.build_model(), batch(tokenizer, FORGET)

    def loss() -> torch.Tensor:
        return -NLL()(token_logits(model, rows)).mean()

    weak, strong = (Latent((0, 1), 0.2, steps).worst(model, prompts(rows), loss) for steps in (1, 8))
    for offsets in (weak, strong):
        for offset in offsets.values():
            assert float(offset.norm(dim=-1).max()) <= 0.2 * (1 + 1e-5)
    values = []
    for offsets in ({}, weak, strong):
        with shifted(model, offsets):
            values.append(loss().item())
    assert values[0] < values[1] <= values[2]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_offsets_are_seen_by_whoever_reads_the_stream(tokenizer):
    model, rows = conftest.build_model(), batch(tokenizer, FORGET)
    everywhere = torch.ones_like(rows["labels"], dtype=torch.bool)
    offset = torch.randn(*everywhere.shape, 48, generator=torch.Generator().manual_seed(0))
    streams = []
    for offsets in ({}, {1: offset}):
        with shifted(model, offsets), residual_stream(model, (1,), everywhere) as caught:
            model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
        streams.append(caught[1])
    torch.testing.assert_close(streams[1], streams[0] + offset[everywhere])


def test_latent_step_is_the_formula(tokenizer, tmp_path):
    """θ − η (g_R(θ) + ∇ L_F(θ, δ*)), with δ* of the same rows; retain rows see no adversary."""
    start, rows = conftest.build_model(), batch(tokenizer, FORGET)
    offsets = Latent((1,), 0.5, 3).worst(start, prompts(rows), lambda: -nll(start, tokenizer, FORGET))
    with shifted(start, offsets):
        value = -nll(start, tokenizer, FORGET)
    hard = slope(start, value)
    expected = flat(start) - 1e-2 * (slope(start, nll(start, tokenizer, RETAIN)) + hard)
    settings = {"latent_radius": 0.5, "latent_layers": "1", "latent_steps": 3}
    trained = run(tokenizer, tmp_path, grad_diff(), **settings)
    torch.testing.assert_close(flat(trained.model), expected, rtol=1e-4, atol=1e-6)
    assert trained.history[0].losses["-nll(forget)"] == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("method", [ngdiff(), npo()])
def test_both_go_with_other_recipes_and_change_what_they_do(tokenizer, tmp_path, method):
    plain = run(tokenizer, tmp_path, method, max_steps=2, sharpness=0.0)
    both = {"sharpness": 0.3, "latent_radius": 0.5, "latent_layers": "1,2"}
    hard = run(tokenizer, tmp_path, method, max_steps=2, **both)
    again = run(tokenizer, tmp_path, method, max_steps=2, **both)
    assert torch.equal(flat(hard.model), flat(again.model))
    assert not torch.allclose(flat(hard.model), flat(plain.model), atol=1e-6)
    assert len(hard.history) == 2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharpness": -1.0}, "sharpness"),
        ({"sharpness": float("nan")}, "sharpness"),
        ({"latent_radius": 0.1}, "latent_layers"),
        ({"latent_radius": 0.1, "latent_layers": "two"}, "latent_layers"),
        ({"latent_radius": -0.1, "latent_layers": "1"}, "radius"),
        ({"latent_radius": 0.1, "latent_layers": "1", "latent_steps": 0}, "steps"),
        ({"latent_radius": 0.1, "latent_layers": "1", "gradient_checkpointing": True}, "checkpointing"),
        ({"latent_radius": 0.1, "latent_layers": "3"}, "layers"),
    ],
)
def test_settings_out_of_range_are_refused(tokenizer, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(tokenizer, tmp_path, grad_diff(), **settings)


def test_no_adversary_is_the_default():
    assert not Hardening()
    assert Hardening(sharpness=0.1)
    with pytest.raises(ValueError, match="radius"), uphill([], [], 0.0):
        pass


@pytest.mark.parametrize("buffers", ["bf16", "cpu"])
def test_gradients_that_wait_elsewhere_serve_sharpness_too(tokenizer, tmp_path, buffers):
    plain = run(tokenizer, tmp_path / "a", ngdiff(tolerance=1e9), sharpness=0.05)
    other = run(tokenizer, tmp_path / "b", ngdiff(tolerance=1e9), sharpness=0.05, gradient_buffers=buffers)
    moved = (flat(plain.model) - flat(conftest.build_model())).norm()
    assert (flat(other.model) - flat(plain.model)).norm() < 0.02 * moved


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, 2.4e-5 * NORM),
        ({"sharpness": 0.0}, 0.0),
        ({"sharpness": 0.2}, 0.2),
        ({"refresh_every": 4}, 0.0),
        ({"update": "zeroth-order"}, 0.0),
    ],
)
def test_a_recipe_has_a_sharpness_of_its_own_and_settings_have_the_last_word(
    tokenizer, tmp_path, settings, wanted
):
    made = run(tokenizer, tmp_path, ngdiff(tolerance=1e9), **settings)
    assert made.descent.hardening.sharpness == pytest.approx(wanted, rel=1e-6)
    said = configuration(made.args, made.method, made.norm)
    assert said.get("relative_sharpness", 0.0) == (0.0 if settings else 2.4e-5)
    assert said["sharpness"] == made.descent.hardening.sharpness
    bare, told = replace(ngdiff(tolerance=1e9), relative_sharpness=0.0), settings | {"sharpness": wanted}
    again = run(tokenizer, tmp_path, bare, **told)
    torch.testing.assert_close(flat(made.model), flat(again.model), rtol=1e-6, atol=1e-9)
    plain = run(tokenizer, tmp_path, bare, **settings | {"sharpness": 0.0})
    assert torch.equal(flat(made.model), flat(plain.model)) == (wanted == 0)


def test_the_gradient_at_the_weights_is_let_go_before_the_next_one():
    p, gradients = nn.Parameter(torch.ones(3)), [[torch.tensor([0.0, 2.0, 0.0])]]
    old = weakref.ref(gradients[0][0])
    with uphill([p], gradients[0], 0.5):
        gradients[0] = [None]
        assert old() is None


def test_what_reads_no_forget_record_is_not_hardened(tokenizer, tmp_path):
    made = run(tokenizer, tmp_path, fine_tune(), sharpness=0.1)
    assert not made.descent.hardening
    assert "sharpness" not in configuration(made.args, made.method, made.norm)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
@pytest.mark.parametrize(
    "settings", [{"lora_rank": 4}, {"lora_rank": 4, "lora_dora": True}, {"train_last": 1}]
)
def test_the_norm_is_that_of_the_model_as_it_comes(tokenizer, tmp_path, settings):
    made = run(tokenizer, tmp_path, ngdiff(tolerance=1e9), **settings)
    assert made.norm == pytest.approx(NORM, rel=1e-9)


def test_the_norm_counts_tied_weights_once_and_refuses_codes():
    model = conftest.build_model()
    assert weights_norm(model.bfloat16()) == pytest.approx(NORM, rel=1e-3)
    model.lm_head.weight = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"lm_head.weight holds torch.int8. Set `sharpness`"):
        weights_norm(model)


def test_a_sharpness_out_of_range_is_refused_with_the_recipe():
    with pytest.raises(ValueError, match="`relative_sharpness` must be at least 0"):
        replace(ngdiff(), relative_sharpness=-1.0)


def test_a_run_says_where_the_recipe_s_sharpness_gave_way(model_folder, tmp_path):
    def notes(**settings) -> list[str]:
        result = expunge.unlearn(
            str(model_folder), forget=FORGET, retain=RETAIN, method="ngdiff", evaluate=False, max_steps=1,
            template="none", output=tmp_path / "-".join(["out", *settings]), **settings,
        )  # fmt: skip
        return [note for note in result.record.notes if "sharpness" in note]

    assert notes() == notes(sharpness=0.0) == []
    for settings in ({"refresh_every": 2}, {"update": "zeroth-order"}):
        (found,) = notes(**settings)
        ((key, value),) = settings.items()
        assert found.startswith(f"{key}={value} leaves no room for the sharpness")


def test_what_hardening_makes_useless_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`refresh_every` must be 1 with `sharpness`"):
        run(tokenizer, tmp_path, ngdiff(tolerance=1e9), sharpness=0.05, refresh_every=4)
