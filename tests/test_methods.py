"""Every recipe forgets, says where it comes from, and refuses what its paper does not allow."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

import conftest
import toy
from expunge import methods
from expunge.arguments import UnlearningArguments
from expunge.methods import METHODS, Method
from expunge.objectives import (
    CEU,
    DPO,
    KL,
    NLL,
    NPO,
    UCE,
    UNDIAL,
    WGA,
    ActivationMatching,
    Ascent,
    InvertedHinge,
    LogitMargin,
    MaxEntropy,
    Replacement,
    SatImp,
    Selected,
    SimNPO,
    Steering,
)
from expunge.references import live_sources
from expunge.settings import configuration, resolve_method
from expunge.step_sizes import WithinBudget
from expunge.unlearner import Unlearner
from expunge.weightings import (
    TORCHJD,
    BiLevel,
    Constant,
    DualAscent,
    DualSpaceMGDA,
    LossNormalized,
    Normalized,
)


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_raises_forget_loss(name):
    toy.assert_raises_forget_loss(METHODS[name]())


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_bears_its_name_its_equation_and_its_source(name):
    recipe = METHODS[name]
    assert recipe().name == name == recipe.__name__.replace("_", "-")
    assert getattr(methods, recipe.__name__) is recipe
    text = inspect.getdoc(recipe)
    first = text.splitlines()[0]
    assert first.endswith(".")
    assert "\\" not in first  # `expunge list methods` prints it
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    assert text.count("$") >= 2, "an equation"
    body = inspect.getsource(recipe).rsplit('"""', 1)[1]
    assert len(body.strip().splitlines()) <= 8  # a recipe reads like its equation
    assert len(body) < len(text)
    for parameter in inspect.signature(recipe).parameters:
        assert f"{parameter}:" in text


EVEN = Constant((1.0, 1.0))
PUBLISHED = {
    "grad-ascent": ((Ascent(NLL("forget")),), Constant((1.0,))),
    "grad-diff": ((Ascent(NLL("forget")), NLL("retain")), EVEN),
    "loss-norm": ((Ascent(NLL("forget")), NLL("retain")), LossNormalized()),
    "ngdiff-gen": ((Ascent(NLL("forget")), NLL("retain")), Normalized()),
    "mollm": ((UCE("forget"), KL(), NLL("retain")), DualSpaceMGDA()),
    "sugd": ((Ascent(NLL("forget")), NLL("retain")), Constant((1 / 8, 0.5 * 7 / 8))),
    "ihl": ((InvertedHinge(), NLL("retain")), EVEN),
    "kl-min": ((Ascent(NLL("forget")), KL()), EVEN),
    "idk-sft": ((NLL("idk"), NLL("retain")), EVEN),
    "dpo": ((DPO("idk", beta=0.1), NLL("retain")), EVEN),
    "alt-po": ((DPO("alternate", beta=0.1), NLL("retain")), EVEN),
    "npo": ((NPO(beta=0.1), NLL("retain")), EVEN),
    "simnpo": ((SimNPO(beta=2.5, gamma=0.0), NLL("retain")), Constant((0.1375, 1.0))),
    "wga": ((WGA(beta=1.0), NLL("retain")), EVEN),
    "satimp": ((SatImp(saturation=5.0, importance=1.0), NLL("retain")), Constant((1.0, 0.1))),
    "me": ((MaxEntropy(), NLL("retain")), Constant((0.1, 1.0))),
    "rmu": (
        (Steering(layer=8, coefficient=6.5), ActivationMatching(layer=8)),
        Constant((1.0, 1200.0)),
    ),
    "undial": ((UNDIAL(gamma=10.0),), Constant((1.0,))),
    "ce-u": ((CEU(),), Constant((1.0,))),
    "whp": ((Selected(Replacement(), "entities"),), Constant((1.0,))),
    "blur": ((NPO(beta=0.1), NLL("retain")), BiLevel(lower=0, gamma=1.0)),
    "pdu": (
        (LogitMargin(), NLL("retain")),
        DualAscent(weights=(1.0, 100.0), bounds=(None, 0.3), rate=5.0, warmup=0),
    ),
}
"""Objectives with their constants, and weighting, of every recipe whose paper names some."""


OTHER = {"selector": "all", "reinforced": "folder", "alpha": 0.4, "density": 0.5}
"""Arguments to which one cannot be added, with a value that is not the default."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_those_of_the_papers(name):
    objectives, weighting = PUBLISHED[name]
    method = METHODS[name]()
    assert method.objectives == objectives
    assert method.weighting == weighting


@pytest.mark.parametrize("name", METHODS)
def test_the_record_tells_every_argument_of_a_recipe(name, tmp_path):
    """A run whose β, layer, bound or selector was another has another configuration."""
    recipe, args = METHODS[name], UnlearningArguments(output_dir=str(tmp_path), use_cpu=True)
    for parameter in inspect.signature(recipe).parameters.values():
        value = OTHER.get(parameter.name)
        if value is None:
            kind = type(parameter.default)
            assert kind in (int, float, bool), parameter
            value = not parameter.default if kind is bool else parameter.default + kind(1)
        fixed = {"reinforced": "folder"} if (name, parameter.name) == ("whp", "alpha") else {}
        usual = configuration(args, recipe(**fixed), 1.0)
        assert configuration(args, recipe(**fixed | {parameter.name: value}), 1.0) != usual, parameter


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_of_the_run_reaches_the_run_whatever_the_recipe(name):
    given = {"seed": 7, "learning_rate": 2e-5, "max_steps": 3}
    assert resolve_method(name, given)[1] == given


def test_the_page_on_clusters_names_the_methods_that_shards_refuse():
    """Those that read a whole second model; merged methods are named apart."""
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    refused = [name for name in METHODS if live_sources(METHODS[name]()) and not METHODS[name]().merge]
    named = re.findall(
        r"(?:with the reason:|`ties-merge`\), and) ([^()]*?)(?:, which need|\s+without an)", page
    )
    assert [re.findall("`(.*?)`", found) for found in named] == [refused, refused]


def test_mollm_never_climbs_an_objective_to_first_order():
    """<d, g_i> >= 0 for all three, whatever the gradients."""
    method = METHODS["mollm"]()
    assert [o.name for o in method.objectives] == ["uce(forget)", "kl(retain)", "nll(retain)"]
    model = toy.LogitTable()
    model.learn()
    before = model.nll("retain")
    toy.unlearn(model, method, steps=60, length=0.05)
    assert model.nll("retain") <= before + 1e-3


@pytest.mark.parametrize("name", ["dpo", "alt-po"])
def test_a_pair_is_a_source_too(name):
    assert METHODS[name]().sources == ("forget", {"dpo": "idk", "alt-po": "alternate"}[name], "retain")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.npo(beta=0.0), "`beta` must be positive"),
        (lambda: methods.npo(retain_weight=-1.0), "must be non-negative; got"),
        (lambda: methods.me(forget_weight=-0.1), "must be non-negative; got"),
        (lambda: methods.kl_min(tolerance=0.0), "`tolerance` must be positive"),
        (lambda: methods.blur(gamma=-1.0), "`gamma` must be non-negative"),
        (lambda: methods.pdu(rate=0.0), "`rate` must be positive"),
        (
            lambda: Method("x", (NLL("retain"),), DualAscent(weights=(1.0, 1.0), bounds=(None, 0.1))),
            r"one weight per objective \(1\)",
        ),
        (
            lambda: Method("x", (NLL(),), Constant((1.0,)), WithinBudget(repairs=True), methods.guard(0.5)),
            "must have a retain budget that repairs.* repair=False",
        ),
        (lambda: methods.ngdiff_gen(clip=0.5), "`clip` must be at least 1 and finite; got 0.5"),
        (lambda: methods.ngdiff_gen(clip=math.inf), "`clip` must be at least 1 and finite; got inf"),
        (lambda: Method("x", (NLL(), NLL()), Constant((1.0, 1.0))), "distinct names"),
        (lambda: Method("x", (NLL(),), BiLevel()), r"as many objectives as there are \(1\); got BiLevel"),
        (lambda: Method("x", (NLL(), UCE()), TORCHJD["krum"]()), r"as there are \(2\); TorchJD\(Krum"),
        (
            lambda: Method("x", (Ascent(NLL("forget")),), Constant((1.0,)), budget=methods.guard(0.5)),
            "must read retain records",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def arguments(folder, **settings):
    defaults = {
        "output_dir": str(folder),
        "bf16": False,
        "use_cpu": True,
        "template": "none",
        "max_steps": 2,
        "save_strategy": "no",
        "check_every": 0,
        "learning_rate": 1e-3,
    }
    return UnlearningArguments(**defaults | settings)


def trained(name, folder, tokenizer, model, **settings):
    """The engine after two steps of a recipe on eight rows of each set, and the parameters' change."""
    method = methods.rmu(layer=1) if name == "rmu" else METHODS[name]()
    data = {"forget_dataset": conftest.rows()[:8], "retain_dataset": conftest.rows()[8:]}
    before = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    run = Unlearner(model, arguments(folder, **settings), method, tokenizer, **data)
    run.train()
    after = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    return run, after - before


@pytest.mark.parametrize("name", METHODS)
def test_four_micro_batches_give_the_gradient_of_one_that_is_four_times_as_large(name, tmp_path, tokenizer):
    """To 1e-6 of the change, in float64, for every recipe: rows, tokens and weights count per step."""
    changes = []
    for size, parts in ((8, 1), (2, 4)):
        model = conftest.build_model().double()
        model.set_attn_implementation("sdpa")  # the eager one takes its softmax in fp32
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        changes.append(trained(name, tmp_path, tokenizer, model, optim="sgd", diagnose_every=0, **batches)[1])
    assert float(changes[0].norm()) > 1e-6
    assert float((changes[0] - changes[1]).norm()) <= 1e-6 * float(changes[0].norm())


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_steps_through_the_engine_in_bf16(name, tmp_path, tokenizer, model):
    """References, pairs, selectors and hidden states as each asks for them; fp32 weights, finite losses."""
    batches = {"per_device_train_batch_size": 4, "learning_rate": 1e-4}
    run, change = trained(name, tmp_path, tokenizer, model, bf16=True, **batches)
    assert len(run.history) == 2
    for step in run.history:
        assert set(step.losses) == {objective.name for objective in run.method.objectives}
        assert all(math.isfinite(loss) for loss in step.losses.values())
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert float((change != 0).float().mean()) > 0.3  # rmu leaves all behind its layer alone
    assert run.args.precision == "bf16"


def test_mollm_sets_out_on_what_is_no_rounding(tmp_path, tokenizer, model):
    """At the reference the divergence has no gradient; its rounding error is not followed."""
    run, _ = trained("mollm", tmp_path, tokenizer, model, max_steps=1)
    (step,) = run.history
    assert step.gradient_norms["kl(retain)"] < 1e-6 * step.gradient_norms["nll(retain)"]
    assert step.weights["kl(retain)"] == 0
    assert step.weights["uce(forget)"] > 0
    assert step.weights["nll(retain)"] > 0


def test_the_sign_of_an_update_moves_every_weight_by_the_rate(tmp_path, tokenizer, model):
    run, change = trained("ngdiff", tmp_path, tokenizer, model, update="sign", max_steps=1)
    moved = change[change != 0]
    assert len(moved) > 0.95 * len(change)
    assert float((moved.abs() - 1e-3).abs().max()) < 1e-6
    (step,) = run.history
    assert 0 < step.update_cosines["nll(retain)"] < 1  # of the applied change
    words = {"max_steps": 1, "optim": "sgd"}
    _, plain = trained("ngdiff", tmp_path, tokenizer, conftest.build_model(), **words, learning_rate=0.1)
    _, signed = trained("ngdiff", tmp_path, tokenizer, conftest.build_model(), **words, update="sign")
    large = plain.abs() > 1e-5
    assert large.any()
    assert torch.equal(signed[large].sign(), plain[large].sign())


def test_a_zeroth_order_step_is_the_gradient_in_expectation(tmp_path, tokenizer):
    """Without one backward pass; along many directions the estimate nears the gradient, and its Gramian."""
    sets = {"optim": "sgd", "max_steps": 1, "per_device_train_batch_size": 8, "diagnose_every": 1}
    runs = []
    for words in ({}, {"update": "zeroth-order", "zeroth_queries": 100}):
        model = conftest.build_model()
        model.requires_grad_(False)
        model.model.norm.requires_grad_(True)  # 48 numbers: few enough to be estimated well
        runs.append(trained("npo", tmp_path, tokenizer, model, **sets, **words))
    (exact, true), (estimate, found) = runs
    cosine = float(true @ found / (true.norm() * found.norm()))
    assert cosine > 0.7
    one, other = exact.history[0], estimate.history[0]
    assert other.losses == pytest.approx(one.losses, rel=1e-4, abs=1e-6)
    for objective, norm in one.gradient_norms.items():
        assert 0.6 < other.gradient_norms[objective] / norm < 1.6
    assert not other.update_cosines


def test_zeroth_order_steps_need_no_backward_pass_and_may_alternate(tmp_path, tokenizer, model, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: pytest.fail("a backward pass"))
    words = {"update": "zeroth-order", "zeroth_queries": 2, "gradient_accumulation_steps": 2}
    run, change = trained("ngdiff", tmp_path, tokenizer, model, per_device_train_batch_size=4, **words)
    assert len(run.history) == 2
    assert float(change.norm()) > 0
    monkeypatch.undo()
    passes = []
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *w, **k: passes.append(1) or original(*w, **k))
    trained("ngdiff", tmp_path, tokenizer, model, update="zeroth-order", zeroth_every=2)
    assert len(passes) == 2  # one per objective, in the first step only


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update": "zeroth-order", "zeroth_queries": 0}, "`queries` and `every` must be at least 1"),
        ({"update": "zeroth-order", "zeroth_radius": 0.0}, "`radius` must be positive"),
        ({"update": "zeroth-order", "sharpness": 0.1}, "must be 0 or left out with `update=zeroth-order`"),
    ],
)
def test_updates_that_cannot_be_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


@pytest.mark.parametrize("name", ["kl-min", "mollm", "undial", "ties-merge", "grad-diff"])
def test_what_sharding_cannot_give_is_refused_before_training(name, tmp_path, tokenizer, model, monkeypatch):
    """A whole reference, a merge, or one direction drawn over all ranks."""
    monkeypatch.setattr("expunge.material.fsdp_wanted", lambda _: True)
    words = {"update": "zeroth-order"} if name == "grad-diff" else {}
    with pytest.raises(ValueError, match="sharded model"):
        trained(name, tmp_path, tokenizer, model, **words)
