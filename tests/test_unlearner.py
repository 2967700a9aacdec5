"""The engine on the tiny model: the right gradient, the right log, resume, stopping."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import conftest
from expunge.arguments import UnlearningArguments
from expunge.collate import collate, encode
from expunge.methods import Method, fine_tune, grad_ascent, grad_diff, ngdiff, ngdiff_gen
from expunge.objectives import NLL, UCE, Ascent
from expunge.probe import token_logits
from expunge.record import Check
from expunge.records import read_records
from expunge.step_sizes import GeN, WithinBudget
from expunge.stopping import RetainBudget
from expunge.unlearner import Unlearner
from expunge.weightings import TORCHJD, Constant, Normalized

FORGET, RETAIN, HOLDOUT = conftest.rows()[:6], conftest.rows()[6:], conftest.rows(("Ivy Iris", "Jon Juniper"))


def arguments(folder: Path, **settings) -> UnlearningArguments:
    defaults = {
        "output_dir": str(folder),
        "bf16": False,
        "template": "none",
        "max_steps": 4,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "check_every": 0,
    }
    return UnlearningArguments(**defaults | settings)


def unlearner(tokenizer, folder: Path, method: Method, model=None, **settings) -> Unlearner:
    return Unlearner(
        model=model if model is not None else conftest.build_model(),
        args=arguments(folder, **settings),
        method=method,
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
    )


@pytest.fixture(scope="module")
def knowledge(tokenizer, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights of the tiny model after it has learned all rows by heart."""
    learner = Unlearner(
        model=conftest.build_model(),
        args=arguments(
            tmp_path_factory.mktemp("taught"), max_steps=200, learning_rate=1e-2, lr_scheduler_type="linear"
        ),
        method=fine_tune(),
        processing_class=tokenizer,
        retain_dataset=FORGET + RETAIN,
    )
    learner.train()
    assert learner.history[-1].losses["nll(retain)"] < 0.1
    return copy.deepcopy(learner.model.state_dict())


@pytest.fixture
def taught(knowledge):
    model = conftest.build_model()
    model.load_state_dict(knowledge)
    return model


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def loss(model, tokenizer, rows) -> torch.Tensor:
    encoded = encode(read_records(rows, name="x"), tokenizer, template="none")
    return NLL()(token_logits(model, collate(encoded, tokenizer.pad_token_id))).mean()


def gradient(model, tokenizer, rows) -> torch.Tensor:
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(loss(model, tokenizer, rows), list(model.parameters()))]
    )


def test_ngdiff_step_is_the_normalised_difference(tokenizer, tmp_path):
    """One SGD step over all rows at once against the equation written out (arXiv 2410.22086)."""
    run = unlearner(
        tokenizer,
        tmp_path,
        Method("ngdiff", ngdiff_gen().objectives, Normalized()),
        optim="sgd",
        max_steps=1,
        per_device_train_batch_size=16,
    )
    model = copy.deepcopy(run.model)
    g_f, g_r = gradient(model, tokenizer, FORGET), gradient(model, tokenizer, RETAIN)
    run.train()
    expected = parameters(model) - 1e-3 * (g_r / g_r.norm() - g_f / g_f.norm())
    torch.testing.assert_close(parameters(run.model), expected, rtol=1e-5, atol=1e-8)
    step = run.history[0]
    assert math.isclose(step.gradient_norms["nll(retain)"], float(g_r.norm()), rel_tol=1e-4)
    assert math.isclose(step.gradient_norms["-nll(forget)"], float(g_f.norm()), rel_tol=1e-4)
    cosine = float(-g_f @ g_r / (g_f.norm() * g_r.norm()))
    assert math.isclose(step.cosines["nll(retain),-nll(forget)"], cosine, rel_tol=1e-3)
    fall = parameters(model) - parameters(run.model)
    for name, g in (("nll(retain)", g_r), ("-nll(forget)", -g_f)):
        assert math.isclose(
            step.update_cosines[name], float(fall @ g / (fall.norm() * g.norm())), rel_tol=2e-2, abs_tol=1e-3
        )
        assert step.update_cosines[name] > 0
    assert math.isclose(
        step.losses["-nll(forget)"], -float(loss(model, tokenizer, FORGET).detach()), rel_tol=1e-5
    )
    rows = encode(read_records(FORGET + RETAIN, name="x"), tokenizer, template="none")
    assert step.tokens == sum(len(row.input_ids) for row in rows)
    assert step.seconds > 0
    assert step.learning_rate == 1e-3


def test_fused_and_separate_passes_give_the_same_update(tokenizer, tmp_path):
    """Constant weights: one fused backward equals one backward per objective."""
    runs = [unlearner(tokenizer, tmp_path, grad_diff(2.0), diagnose_every=n, optim="sgd") for n in (0, 1)]
    for run in runs:
        run.train()
    torch.testing.assert_close(*(parameters(run.model) for run in runs), rtol=1e-5, atol=1e-6)
    assert not runs[0].history[0].gradient_norms
    assert runs[1].history[0].gradient_norms.keys() == {"-nll(forget)", "nll(retain)"}
    for fused, separate in zip(*(run.history for run in runs), strict=True):
        assert fused.weights == separate.weights == {"-nll(forget)": 1.0, "nll(retain)": 2.0}
        assert fused.losses == pytest.approx(separate.losses, rel=1e-4)


@pytest.mark.parametrize("method", [grad_diff(), ngdiff()], ids=["constant", "normalized"])
def test_accumulation_equals_one_large_batch(tokenizer, tmp_path, method):
    """Gradients are summed per objective over micro-batches, then combined once: with all rows in the
    step, four micro-batches and one give the same update. Normalising each micro-batch does not."""
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2}
    whole = unlearner(tokenizer, tmp_path, method, per_device_train_batch_size=16, **settings)
    parts = Unlearner(
        model=conftest.build_model(),
        args=arguments(tmp_path, per_device_train_batch_size=5, gradient_accumulation_steps=2, **settings),
        method=method,
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
    )
    whole.train()
    parts.train()
    torch.testing.assert_close(parameters(whole.model), parameters(parts.model), rtol=1e-4, atol=1e-6)


def test_pad_that_is_end_of_turn_changes_nothing(tokenizer, tmp_path):
    """The end-of-sequence label, whose id is also the pad's, is trained on."""
    run = unlearner(tokenizer, tmp_path, fine_tune(), max_steps=1, per_device_train_batch_size=16)
    batch = next(iter(run.get_train_dataloader()))["retain"]
    ends = batch["attention_mask"].sum(1) - 1
    assert (batch["labels"].gather(1, ends[:, None]) == tokenizer.eos_token_id).all()


def test_small_steps_are_not_lost_under_bf16_compute(tokenizer, tmp_path):
    """fp32 masters: a 1e-5 step changes nearly every weight (bf16 weights would keep most)."""
    run = unlearner(tokenizer, tmp_path, ngdiff(), bf16=True, learning_rate=1e-5, max_steps=3)
    before = parameters(run.model).clone()
    run.train()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert float((parameters(run.model) != before).float().mean()) > 0.95


def test_bf16_weights_and_fp16_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="fp32 trainable weights"):
        unlearner(tokenizer, tmp_path, ngdiff(), model=conftest.build_model().bfloat16())
    with pytest.raises(ValueError, match="`fp16` must be False"):
        arguments(tmp_path, fp16=True)


def test_a_missing_data_set_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="missing: `retain_dataset`"):
        Unlearner(conftest.build_model(), arguments(tmp_path), ngdiff(), tokenizer, forget_dataset=FORGET)


def test_gen_sets_the_rate_and_probing_changes_nothing_else(tokenizer, tmp_path):
    """A rule that measures but keeps η gives bit-identical training; the naive probe does not."""

    class Watch(GeN):
        def __call__(self, learning_rate, line):
            return super().__call__(learning_rate, line)._replace(learning_rate=learning_rate)

    def build():
        model = conftest.build_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.2
        return model

    base = Method("plain", ngdiff().objectives, Normalized())
    plain = unlearner(tokenizer, tmp_path, base, model=build(), max_steps=6)
    plain.train()
    probed = unlearner(
        tokenizer, tmp_path, replace(base, step_size=Watch(every=2)), model=build(), max_steps=6
    )
    probed.train()
    assert torch.equal(parameters(plain.model), parameters(probed.model))
    assert len(probed.monitor.state.probes) == 3
    states = [run.optimizer.state_dict()["state"] for run in (plain, probed)]
    for key, state in states[0].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(states[1][key][k])) for k, v in state.items()
        )


def test_gen_reads_the_same_rows_at_all_points_under_accumulation(tokenizer, tmp_path, monkeypatch):
    """The three losses cover every micro-batch of the step, not the last one only."""
    seen = []
    original = GeN.__call__
    monkeypatch.setattr(
        GeN, "__call__", lambda self, rate, line: seen.append(line) or original(self, rate, line)
    )
    settings = {"max_steps": 1, "per_device_train_batch_size": 5}
    unlearner(tokenizer, tmp_path, ngdiff_gen(), gradient_accumulation_steps=2, **settings).train()
    (line,) = seen
    assert line.minus.shape == line.zero.shape == line.plus.shape == (10,)
    model = conftest.build_model()
    assert math.isclose(
        float((line.zero * line.tokens).sum() / line.tokens.sum()),
        float(loss(model, tokenizer, RETAIN).detach()),
        rel_tol=1e-5,
    )


def test_gen_moves_the_rate_and_the_step(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, ngdiff_gen(every=1), learning_rate=1e-6, max_steps=8)
    run.train()
    probes = [probe for probe in run.monitor.state.probes if probe.slope is not None]
    assert all(p.learning_rate_before != p.learning_rate_after or p.decision == "newton" for p in probes)
    assert max(p.learning_rate_after for p in probes) > 1e-5, "ten times within a few probes"
    for earlier, later in itertools.pairwise(probes):
        assert math.isclose(earlier.learning_rate_after, later.learning_rate_before, rel_tol=1e-9)
    assert math.isclose(run.history[-1].learning_rate, probes[-1].learning_rate_after, rel_tol=1e-9)


def test_over_budget_steps_repair(tokenizer, tmp_path, taught):
    """At a rate that is far too high the retain loss leaves its budget; forget weighs 0 until it is back."""
    model = taught
    method = replace(ngdiff(), budget=RetainBudget(tolerance=0.05, every=2, rows=10, patience=50))
    run = unlearner(tokenizer, tmp_path, method, model=model, learning_rate=3e-3, max_steps=30)
    start = float(loss(model, tokenizer, RETAIN).detach())
    run.train()
    repairs = [step for step in run.history if step.repair]
    assert 0 < len(repairs) < 30
    assert all(step.weights["uce(forget)"] == 0 and "uce(forget)" not in step.losses for step in repairs)
    assert all(step.weights["uce(forget)"] > 0 for step in run.history if not step.repair)
    assert float(loss(run.model, tokenizer, RETAIN).detach()) <= start + 0.05
    forgetting = [step.losses["uce(forget)"] for step in run.history if not step.repair]
    assert forgetting[0] > 1 > forgetting[-1]


def test_a_spent_budget_ends_the_run_and_restores_the_last_good_state(tokenizer, tmp_path, taught):
    model = taught
    method = replace(ngdiff(), budget=RetainBudget(tolerance=1e-6, every=1, rows=10, patience=2))
    before = parameters(model).clone()
    run = unlearner(tokenizer, tmp_path, method, model=model, learning_rate=0.03, max_steps=30)
    run.train()
    assert run.stop.reason == "retain-budget"
    assert run.stop.restored_step == 0
    assert len(run.history) == 2
    assert torch.equal(parameters(run.model), before)


@pytest.mark.parametrize("method", [ngdiff(), grad_diff(), ngdiff_gen()], ids=lambda m: m.name)
def test_divergence_is_a_recorded_outcome(tokenizer, tmp_path, method):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **_):
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.norm.weight.fill_(float("inf"))

    run = unlearner(tokenizer, tmp_path, method, max_steps=8, diagnose_every=0)
    run.add_callback(Poison())
    run.train()
    assert run.stop.reason == "diverged"
    assert run.stop.restored_step == 0
    assert len(run.history) == 2
    assert parameters(run.model).isfinite().all()


def test_an_infinite_gradient_of_a_finite_loss_is_caught_in_a_fused_step(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, grad_diff(), max_steps=3, diagnose_every=0)
    before = parameters(run.model).clone()
    run.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    run.train()
    assert run.stop.reason == "diverged"
    assert not run.history
    assert torch.equal(parameters(run.model), before)


def test_a_model_that_never_knew_is_left_as_it_is(tokenizer, tmp_path):
    """Random weights: forget records look like the holdout from the start."""
    run = Unlearner(
        model=conftest.build_model(),
        args=arguments(tmp_path, check_every=2),
        method=ngdiff(),
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        holdout_dataset=HOLDOUT,
    )
    met = Check(
        step=0,
        forget_nll=6.0,
        forget_leak=0.0,
        control="holdout",
        control_nll=5.9,
        control_leak=0.0,
        met=True,
    )
    run.monitor.check = lambda step, **_: met
    before = parameters(run.model).clone()
    run.train()
    assert (run.stop.reason, run.stop.step) == ("forgotten", 0)
    assert "nothing to forget" in run.stop.sentence
    assert torch.equal(parameters(run.model), before)


def met_after_start(step: int, **_: object) -> Check:
    return Check(
        step=step,
        forget_nll=6.0,
        forget_leak=0.0,
        control="swap",
        control_nll=1.0,
        preference=0.4,
        met=step > 0,
    )


def test_near_the_goal_every_step_is_looked_at(tokenizer, tmp_path):
    """A nat per step towards a control at 12.5: after the look at 10, that at 15 would come too late."""
    run = unlearner(tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10), max_steps=30, check_every=5)
    looks = []

    def look(step, **_):
        looks.append(step)
        met = step > 12
        found = {"forget_nll": float(step), "forget_leak": 0.0, "control_nll": 12.5, "control_leak": 0.0}
        return Check(step=step, control="holdout", met=met, **found)

    run.monitor.check = look
    run.train()
    assert looks == [0, 5, 10, 11, 12, 13]
    assert (run.stop.reason, run.stop.step) == ("forgotten", 13)


def test_forgotten_counts_only_within_budget(tokenizer, tmp_path, monkeypatch):
    """Met at step 2 while over budget: repair goes on, and the next reading within budget ends the run."""
    run = unlearner(tokenizer, tmp_path, ngdiff(every=2, rows=10), max_steps=12, check_every=5)
    readings = {2: False, 4: False, 6: True}
    looks = []

    def look(step, **_):
        looks.append(step)
        return met_after_start(step)

    def read(step, rate):
        over = not readings.get(step, False)
        run.monitor.state.over_budget, run.monitor.state.repairing = int(over), over

    run.monitor.check = look
    monkeypatch.setattr(run.monitor, "_read", read)
    run.train()
    assert looks == [0, 5, 6]
    assert (run.stop.reason, run.stop.step) == ("forgotten", 6)


def test_forgotten_between_readings_is_read_first(tokenizer, tmp_path, monkeypatch):
    run = unlearner(tokenizer, tmp_path, ngdiff(every=5, rows=10), max_steps=12, check_every=3)
    run.monitor.check = met_after_start
    run.train()
    assert run.stop.step == 3
    assert run.monitor.state.probes[-1].step == 3


def test_gen_waits_for_a_warmup_from_zero(tokenizer, tmp_path):
    run = unlearner(
        tokenizer, tmp_path, ngdiff_gen(every=1), max_steps=4, lr_scheduler_type="linear", warmup_steps=2.0
    )
    run.train()
    assert run.history[0].learning_rate == 0.0
    assert len([p for p in run.monitor.state.probes if p.slope is not None]) == 3


def test_a_guard_ends_a_published_method_and_restores(tokenizer, tmp_path, taught):
    run = unlearner(
        tokenizer, tmp_path, grad_diff(tolerance=0.1), model=taught, learning_rate=0.01, max_steps=40
    )
    before = parameters(run.model).clone()
    run.train()
    assert run.stop.reason == "retain-budget"
    assert not any(step.repair for step in run.history)
    assert torch.equal(parameters(run.model), before)


def test_the_largest_step_within_budget_is_measured_against_the_start(tokenizer, tmp_path, taught):
    """The rate grows while there is room, and the retain loss stays within its tolerance of the start."""
    method = replace(ngdiff(), step_size=WithinBudget(tolerance=0.2, every=2, rows=10), budget=None)
    run = unlearner(tokenizer, tmp_path, method, model=taught, learning_rate=1e-6, max_steps=24)
    run.train()
    probes = run.monitor.state.probes
    start = statistics.fmean(run.monitor.state.start)
    assert run.history[-1].learning_rate > 10 * 1e-6
    assert {p.decision for p in probes} <= {
        "within budget",
        "within budget, clipped",
        "keep: slope not resolved",
    }
    assert max(p.retain_loss for p in probes) <= start + 0.2


def test_a_weighting_for_three_objectives_lets_the_one_that_keeps_repair(tokenizer, tmp_path, taught):
    """Krum needs three; in a repair step two of them rest."""
    method = Method(
        "krum",
        (Ascent(NLL("forget")), UCE("forget"), NLL("retain")),
        TORCHJD["krum"](),
        budget=RetainBudget(tolerance=0.05, every=1, rows=10, patience=50),
    )
    run = unlearner(tokenizer, tmp_path, method, model=taught, learning_rate=0.01, max_steps=10)
    run.train()
    repaired = [step for step in run.history if step.repair]
    assert repaired
    assert all(step.weights["nll(retain)"] == 1.0 for step in repaired)
    assert run.stop.reason != "diverged"


@pytest.mark.parametrize("repairs", [False, True])
def test_a_rate_that_goes_over_budget_shrinks_or_is_repaired(tokenizer, tmp_path, taught, repairs):
    """Without repair η halves at every measurement over budget; with it steps repair at the η there is."""
    rule = WithinBudget(tolerance=0.04, every=2, rows=10, repairs=repairs)
    budget = RetainBudget(tolerance=0.02, every=2, rows=10, patience=50) if repairs else None
    method = replace(ngdiff(), step_size=rule, budget=budget)
    run = unlearner(tokenizer, tmp_path, method, model=taught, learning_rate=0.03, max_steps=16)
    run.train()
    probes = [p for p in run.monitor.state.probes if p.slope is not None]
    start = statistics.fmean(run.monitor.state.start)
    over = [p for p in probes if p.retain_loss > start + 0.04 and "over budget" in p.decision]
    if repairs:
        assert any(step.repair for step in run.history)
        assert not any(p.decision == "shrink: over budget" for p in probes)
    else:
        assert over
        assert all(p.learning_rate_after == p.learning_rate_before / 2 for p in over)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_lora_trains_the_adapter_only(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(conftest.build_model(), config)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    run = unlearner(tokenizer, tmp_path, ngdiff(rows=10), model=model, max_steps=3)
    run.train()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert run.history[-1].losses["uce(forget)"] < run.history[0].losses["uce(forget)"]
    assert run.history[0].gradient_norms["nll(retain)"] > 0


def test_stops_when_forget_looks_like_the_holdout(tokenizer, tmp_path, taught):
    model = taught
    run = Unlearner(
        model=model,
        args=arguments(tmp_path, max_steps=250, learning_rate=1e-3, check_every=2),
        method=ngdiff(tolerance=0.5, rows=10),
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        holdout_dataset=HOLDOUT,
    )
    run.train()
    assert run.stop.reason == "forgotten"
    assert run.stop.step < 250
    first, last = run.monitor.state.checks[0], run.monitor.state.checks[-1]
    assert (first.met, last.met, last.control) == (False, True, "holdout")
    assert first.forget_leak > 0.8 > last.forget_leak == 0.0
    assert last.forget_nll >= last.control_nll


def test_without_a_holdout_it_stops_by_a_synthetic_one(tokenizer, tmp_path, taught):
    run = unlearner(
        tokenizer, tmp_path, ngdiff(tolerance=0.5, rows=10), model=taught, max_steps=250, check_every=10
    )
    run.train()
    assert run.stop.reason == "forgotten"
    assert "about nobody" in run.stop.sentence
    checks = run.monitor.state.checks
    assert {check.control for check in checks} == {"synthetic"}
    assert checks[0].forget_leak > 0.8 > checks[-1].forget_leak == 0.0
    assert checks[-1].forget_nll >= checks[-1].control_nll


def test_stops_by_the_swap_control_where_nothing_can_be_made_up(tokenizer, tmp_path, taught, monkeypatch):
    monkeypatch.setattr("expunge.forget_check.synthetic_holdout", lambda chosen, *_: [None] * len(chosen))
    model = taught
    run = unlearner(
        tokenizer, tmp_path, ngdiff(tolerance=0.5, rows=10), model=model, max_steps=250, check_every=2
    )
    run.train()
    assert run.stop.reason == "forgotten"
    first, last = run.monitor.state.checks[0], run.monitor.state.checks[-1]
    assert first.control == "swap"
    assert first.preference > 0.9
    assert last.preference <= 0.5


def test_a_run_without_retain_needs_no_budget(tokenizer, tmp_path):
    run = Unlearner(
        conftest.build_model(), arguments(tmp_path), grad_ascent(), tokenizer, forget_dataset=FORGET
    )
    run.train()
    assert run.stop.reason == "step-limit"
    assert run.history[-1].losses["-nll(forget)"] < run.history[0].losses["-nll(forget)"]


@pytest.mark.parametrize(
    "method", [ngdiff(every=2, rows=10), ngdiff_gen(every=3), grad_diff()], ids=lambda m: m.name
)
def test_interrupt_leaves_a_checkpoint_and_resume_equals_the_uninterrupted_run(tokenizer, tmp_path, method):
    class CtrlC(TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            raise AssertionError("no accumulation here")

        def on_optimizer_step(self, args, state, control, **_):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    settings = {"max_steps": 9, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1000}
    whole = unlearner(tokenizer, tmp_path / "whole", method, **settings)
    whole.train()
    broken = unlearner(tokenizer, tmp_path / "broken", method, **settings)
    broken.add_callback(CtrlC())
    broken.train()
    assert broken.stop.reason == "interrupted"
    assert broken.state.global_step == 5
    resumed = unlearner(tokenizer, tmp_path / "broken", method, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-5"))
    assert torch.equal(parameters(whole.model), parameters(resumed.model))
    assert [s.step for s in resumed.history] == list(range(1, 10))
    assert [s.losses for s in resumed.history] == [s.losses for s in whole.history]
    assert [p.model_dump() for p in resumed.monitor.state.probes] == [
        p.model_dump() for p in whole.monitor.state.probes
    ]
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_checkpoint_of_another_run_is_refused(tokenizer, tmp_path):
    first = unlearner(tokenizer, tmp_path, ngdiff(), save_strategy="steps", save_steps=2, max_steps=2)
    first.train()
    other = unlearner(tokenizer, tmp_path, ngdiff(), max_steps=4, seed=1)
    with pytest.raises(ValueError, match="same data, method and settings"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_trackers_see_the_numbers(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, ngdiff(), max_steps=2)
    run.train()
    logged = run.state.log_history[0]
    assert {"losses/nll(retain)", "gradient_norms/uce(forget)", "tokens_per_second"} <= logged.keys()


def test_a_method_of_ones_own(tokenizer, tmp_path):
    """Any objective, any weighting, any step size."""
    method = Method(
        "mine",
        (NLL("forget"), Ascent(NLL("retain"))),
        Constant((0.5, 0.25)),
        step_size=GeN(every=1, rows=4, significance=1.0),
        budget=RetainBudget(tolerance=10.0, every=2, rows=4),
    )
    run = unlearner(tokenizer, tmp_path, method)
    run.train()
    assert run.history[0].weights == {"nll(forget)": 0.5, "-nll(retain)": 0.25}
    assert len(run.monitor.state.probes) == 4 + 2
