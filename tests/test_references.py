"""References, pairs, row units and hidden states through the engine, against equations written out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import conftest
import engine_objectives as own
from expunge import tables
from expunge.arguments import UnlearningArguments
from expunge.collate import collate, encode
from expunge.methods import Method, grad_diff, ngdiff, npo
from expunge.objectives import NLL, Ascent, Needs
from expunge.observation import observe, token_logits
from expunge.records import read_records
from expunge.references import LiveReference, adapter_is_idle
from expunge.scoring import score
from expunge.unlearner import Unlearner
from expunge.weightings import Constant, Normalized

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:8], ROWS[8:]


def unlearner(tokenizer, folder, method: Method, model=None, **settings) -> Unlearner:
    defaults = {
        "output_dir": str(folder),
        "bf16": False,
        "use_cpu": True,
        "template": "none",
        "max_steps": 2,
        "save_strategy": "no",
        "learning_rate": 0.05,
        "optim": "sgd",
        "check_every": 0,
        "per_device_train_batch_size": 8,
        "diagnose_every": 0,
    }
    return Unlearner(
        conftest.build_model() if model is None else model,
        UnlearningArguments(**defaults | settings),
        method,
        tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
    )


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def batch(tokenizer, rows):
    encoded = encode(read_records(rows, name="x"), tokenizer, template="none")
    return collate(encoded, tokenizer.pad_token_id)


def count_passes(model: nn.Module) -> list[int]:
    """Grows by one batch size per forward pass."""
    seen: list[int] = []
    model.register_forward_hook(
        lambda _m, _a, kwargs, _o: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("name", ["preference", "drift", "divergence", "selected"])
def test_accumulation_equals_one_large_batch(tokenizer, tmp_path, name):
    """Rows, tokens and selected tokens are counted over the whole step: 4 micro-batches equal one."""
    whole = unlearner(tokenizer, tmp_path, own.METHODS[name]())
    parts = unlearner(
        tokenizer, tmp_path, own.METHODS[name](), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    whole.train()
    parts.train()
    assert float((parameters(whole.model) - parameters(conftest.build_model())).norm()) > 1e-3
    torch.testing.assert_close(parameters(whole.model), parameters(parts.model), rtol=1e-6, atol=1e-6)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
        assert a.tokens == b.tokens


@pytest.mark.parametrize("name", ["preference-fused", "selected"])
def test_fused_separate_and_unshared_passes_give_the_same_update(tokenizer, tmp_path, name):
    runs = [unlearner(tokenizer, tmp_path, own.METHODS[name](), diagnose_every=n) for n in (0, 1, 1)]
    runs[2].descent.share = False
    for run in runs:
        run.train()
    for run in runs[1:]:
        torch.testing.assert_close(parameters(run.model), parameters(runs[0].model), rtol=1e-5, atol=1e-6)
        assert run.history[-1].losses == pytest.approx(runs[0].history[-1].losses, rel=1e-4)


def test_a_row_objective_is_the_mean_over_rows_of_the_equation(tokenizer, tmp_path):
    """One SGD step of DPO against the loss written out with log-probabilities of whole sequences."""
    run = unlearner(tokenizer, tmp_path, own.preference_fused(), max_steps=1)
    refusals = [{"prompt": r.prompt, "response": r.response} for r in run.records["idk"]]
    assert [r["prompt"] for r in refusals] == [r["prompt"] for r in FORGET]
    model, start = copy.deepcopy(run.model), copy.deepcopy(run.model)

    def sequence(net, rows):
        inputs = batch(tokenizer, rows)
        logits = net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        labels = inputs["labels"][:, 1:]
        tokens = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        return (tokens * (labels != -100)).sum(1), (labels != -100).sum()

    with torch.no_grad():
        old_wanted, old_unwanted = sequence(start, refusals)[0], sequence(start, FORGET)[0]
    wanted, unwanted = sequence(model, refusals)[0], sequence(model, FORGET)[0]
    preference = -nn.functional.logsigmoid(0.5 * ((wanted - old_wanted) - (unwanted - old_unwanted))).mean()
    nll, tokens = sequence(model, RETAIN)
    (preference - 0.5 * nll.sum() / tokens).backward()
    expected = torch.cat([(p - 0.05 * p.grad).detach().reshape(-1) for p in model.parameters()])
    run.train()
    torch.testing.assert_close(parameters(run.model), expected, rtol=1e-5, atol=1e-7)
    assert run.history[0].losses["preference"] == pytest.approx(float(preference.detach()), rel=1e-5)


def test_log_probabilities_are_computed_once_and_carried(tokenizer, tmp_path):
    """One scored pass over the rows before training, none in the loop; each step one forward pass."""
    run = unlearner(tokenizer, tmp_path, own.preference_fused(), max_steps=6, per_device_train_batch_size=4)
    seen = count_passes(run.model)
    run.train()
    scored, steps = seen[:-6], seen[-6:]
    assert sum(rows for rows in scored if rows > 1) == 16  # forget, refusals; 1: a look at two tokens
    assert steps == [12] * 6  # forget, idk and retain rows together
    found = score(conftest.build_model(), run.encoded["idk"], pad_id=1)
    for row, scores in zip(run.facts.values["idk"]["reference"], found, strict=True):
        assert row == pytest.approx(scores.log_probs, rel=1e-5)
    assert "retain" not in run.facts.values


@pytest.mark.parametrize("method", [grad_diff(), ngdiff(rows=8), own.drift()], ids=lambda m: m.name)
def test_there_is_no_copy_where_no_objective_needs_one(tokenizer, tmp_path, method, monkeypatch):
    monkeypatch.setattr(LiveReference, "__init__", lambda *_: pytest.fail("a reference was built"))
    run = unlearner(tokenizer, tmp_path, method)
    run.train()
    assert run.descent.reference is None
    assert (run.facts.values == {}) == (method.name != "drift")


def test_a_live_reference_is_the_start_of_the_run(tokenizer, tmp_path):
    """KL is zero at the first step and grows; the swapped values leave the model as it was."""
    run = unlearner(tokenizer, tmp_path, own.divergence(), max_steps=4)
    start = parameters(run.model).clone()
    run.train()
    losses = [step.losses["divergence"] for step in run.history]
    assert losses[0] == pytest.approx(0.0, abs=1e-7)
    assert losses[-1] > 1e-5
    reference = run.descent.reference
    assert torch.equal(torch.cat([t.reshape(-1) for t in reference.start]), start)
    assert reference.extra_bytes == start.numel() * 4
    inputs = {"retain": batch(tokenizer, RETAIN)}
    told = reference(inputs, 1)["retain"]
    expected = token_logits(conftest.build_model(), inputs["retain"])
    torch.testing.assert_close(told.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(told.target_log_probs, expected.target_log_probs, rtol=0, atol=0)
    assert not told.logits.requires_grad


def test_a_live_reference_leaves_gradients_to_training_under_bf16(tokenizer, tmp_path):
    """Weights cast for the reference must not be reused: their casts carry no gradient."""
    run = unlearner(tokenizer, tmp_path, own.divergence(), max_steps=1, bf16=True)
    run.train()
    assert run.history[0].gradient_norms["nll(retain)"] > 0.1
    assert run.history[0].gradient_norms["nll(forget)"] > 0.1


def test_a_live_reference_runs_once_per_shared_pass(tokenizer, tmp_path):
    """Retain NLL and KL share their forward pass; the reference runs on retain rows alone."""
    run = unlearner(tokenizer, tmp_path, own.divergence(), max_steps=3)
    seen = count_passes(run.model)
    run.train()
    assert run.descent.reference.passes == 3
    assert seen == [8, 8, 8] * 3  # forget; reference on retain; retain


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (-1,), (-3, 1)])
def test_hidden_states_are_those_of_the_model(tokenizer, layers):
    model = conftest.build_model().eval()
    inputs = batch(tokenizer, RETAIN)
    tokens = observe(model, {"retain": inputs}, layers=layers)["retain"]
    outputs = []
    model.model.norm.register_forward_pre_hook(lambda _m, args: outputs.append(args[0]))
    full = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
    )
    stack = [*full.hidden_states[:2], outputs[0]]  # transformers gives the last one after the norm
    places = inputs["labels"][:, 1:] != -100
    for layer in layers:
        torch.testing.assert_close(tokens.hidden[layer], stack[layer][:, :-1][places])
    assert tokens.hidden.keys() == set(layers)


def test_hidden_states_match_the_reference_at_first(tokenizer, tmp_path):
    method = Method("m", (Ascent(NLL("forget")), own.Matching(layers=(1, -1))), Constant((1.0, 1.0)))
    run = unlearner(tokenizer, tmp_path, method, max_steps=3)
    run.train()
    losses = [step.losses["matching"] for step in run.history]
    assert losses[0] == pytest.approx(0.0, abs=1e-8)
    assert losses[-1] > 1e-7


def test_layers_that_the_model_lacks_are_refused(tokenizer, tmp_path):
    method = Method("m", (own.Matching(layers=(3,)),), Constant((1.0,)))
    with pytest.raises(ValueError, match="between -3 and 2 for a model of 2 blocks; got 3"):
        unlearner(tokenizer, tmp_path, method)


@pytest.mark.parametrize("name", ["preference", "divergence"])
def test_a_resumed_run_equals_the_uninterrupted_one(tokenizer, tmp_path, name):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = control.should_save = state.global_step == 3

    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 100, "per_device_train_batch_size": 4}
    method = own.METHODS[name]
    whole = unlearner(tokenizer, tmp_path / "whole", method(), **settings)
    whole.train()
    broken = unlearner(tokenizer, tmp_path / "broken", method(), **settings)
    broken.add_callback(Interrupt())
    broken.train()
    resumed = unlearner(tokenizer, tmp_path / "broken", method(), **settings)
    seen = count_passes(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-3"))
    assert torch.equal(parameters(whole.model), parameters(resumed.model))
    assert [s.losses for s in resumed.history] == [s.losses for s in whole.history]
    assert len(seen) <= 3 * 3, "no scored pass is repeated"


def test_resuming_with_another_starting_model_is_refused(tokenizer, tmp_path):
    """The reference is the model at the start: the caller must give that one."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    unlearner(tokenizer, tmp_path, own.drift(), **settings).train()
    other = unlearner(tokenizer, tmp_path, own.drift(), model=conftest.build_model(seed=1), **settings)
    with pytest.raises(ValueError, match="same data, method and settings"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def lora(**settings):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(conftest.build_model(), config)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_new_adapter_is_switched_off_for_the_reference(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, own.divergence(), model=lora(), max_steps=3)
    run.train()
    reference = run.descent.reference
    assert reference.start is None
    assert reference.extra_bytes == 0
    assert run.history[0].losses["divergence"] == pytest.approx(0.0, abs=1e-7)
    assert run.history[-1].losses["divergence"] > 0
    inputs = {"retain": batch(tokenizer, RETAIN)}
    plain = token_logits(conftest.build_model(), inputs["retain"]).logits
    torch.testing.assert_close(reference(inputs, 1)["retain"].logits, plain, rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad == ("lora_" in name) for name, p in run.model.named_parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_that_was_trained_is_part_of_the_start(tokenizer, tmp_path):
    """With it off the model would be another one: its values are kept, and nothing else."""
    model = lora(init_lora_weights=False)
    assert not adapter_is_idle(model)
    before = token_logits(model.eval(), batch(tokenizer, RETAIN)).logits.detach()
    run = unlearner(tokenizer, tmp_path, own.divergence(), model=model, max_steps=3)
    run.train()
    reference = run.descent.reference
    assert reference.extra_bytes == sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    told = reference({"retain": batch(tokenizer, RETAIN)}, 1)["retain"].logits
    torch.testing.assert_close(told, before, rtol=0, atol=0)
    assert run.history[0].losses["divergence"] == pytest.approx(0.0, abs=1e-7)


def test_another_run_on_the_same_model_and_rows_takes_what_the_reference_says_from_a_cache(
    tokenizer, tmp_path, monkeypatch
):
    scored, original = [], tables.score
    monkeypatch.setattr(tables, "score", lambda *w, **k: scored.append(len(w[1])) or original(*w, **k))

    def facts(model, method, cache):
        run = unlearner(tokenizer, tmp_path, method, model=model)
        run.cache = cache
        run._consult_reference(None)
        return run.facts.values

    def same(one, other):
        assert one.keys() == other.keys()
        for name in one:
            for a, b in zip(one[name]["reference"], other[name]["reference"], strict=True):
                assert a.dtype == b.dtype
                assert (a == b).all()

    kept, rows = tmp_path / "kept", len(FORGET)
    model, changed = conftest.build_model(), conftest.build_model(seed=1)
    plain = facts(model, npo(), None)
    assert not kept.exists()
    same(facts(model, npo(), kept), plain)
    assert scored == [rows, rows]
    same(facts(model, npo(beta=0.5), kept), plain)
    assert scored == [rows, rows]  # nothing was asked again
    other = facts(changed, npo(), kept)
    assert scored == [rows, rows, rows]
    assert any(
        (a != b).any() for a, b in zip(*(f["forget"]["reference"] for f in (plain, other)), strict=True)
    )


def test_paired_rows_meet_in_every_batch(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, own.preference(), max_steps=5, per_device_train_batch_size=3)
    prompts = {}
    for name in ("forget", "idk"):
        prompts[name] = [row.input_ids[: row.prompt_length] for row in run.encoded[name]]
    run._consult_reference(None)
    for micro in run.get_train_dataloader():
        assert len(micro["forget"]["labels"]) == len(micro["idk"]["labels"]) <= 3
        for a, b in zip(micro["forget"]["input_ids"], micro["idk"]["input_ids"], strict=True):
            head = next(p for p in prompts["forget"] if tuple(a[: len(p)].tolist()) == p)
            assert tuple(b[: len(head)].tolist()) == head
        assert micro["idk"]["reference"].shape == micro["idk"]["labels"].shape
        assert ((micro["idk"]["reference"] != 0) <= (micro["idk"]["labels"] != -100)).all()


def test_repair_rests_objectives_on_derived_sets(tokenizer, tmp_path):
    method = Method("m", (NLL("idk"), own.Preference(), NLL("retain")), Normalized())
    run = unlearner(tokenizer, tmp_path, method)
    run.descent.begin(repair=True, separate=False)
    assert [objective.name for objective in run.descent.active] == ["nll(retain)"]
    assert run.descent.sources == ["retain"]


def test_a_pair_must_be_derived_from_what_is_read(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="must be paired with a derived data set"):
        unlearner(tokenizer, tmp_path, Method("m", (own.Preference(pair="retain"),), Constant((1.0,))))
    with pytest.raises(ValueError, match="must read the forget set to be paired"):
        unlearner(tokenizer, tmp_path, Method("m", (own.Preference(source="retain"),), Constant((1.0,))))


@dataclass(repr=False)
class Remembering:
    """Weights that grow with every observed step; a plain class, whose `repr` holds its address."""

    needs_gramian = False
    steps: int = 0
    seen: tuple = ()

    def __call__(self, gramian, losses):
        return torch.tensor([1.0 + self.steps] * len(losses), dtype=torch.float64)

    def reset(self):
        self.steps, self.seen = 0, ()

    def observe(self, losses):
        self.steps += 1
        self.seen = (*self.seen, tuple(losses.tolist()))

    def state(self):
        return {"steps": float(self.steps)}

    def restore(self, state):
        self.steps = int(state["steps"])


def test_a_weighting_that_remembers_is_told_once_a_step_and_resumes(tokenizer, tmp_path):
    def method():
        return Method("m", (Ascent(NLL("forget")), NLL("retain")), Remembering(steps=7))

    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5, "learning_rate": 1e-3}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = unlearner(tokenizer, tmp_path, method(), **settings)
    whole.train()
    weighting = whole.method.weighting
    assert weighting.steps == 5
    assert [next(iter(s.weights.values())) for s in whole.history] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [list(s.losses.values()) for s in whole.history] == [list(s) for s in weighting.seen]
    again = unlearner(tokenizer, tmp_path / "b", method(), **settings)

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3

    again.add_callback(Interrupt())
    again.train()
    resumed = unlearner(tokenizer, tmp_path / "b", method(), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert [next(iter(s.weights.values())) for s in resumed.history] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert torch.equal(parameters(resumed.model), parameters(whole.model))


def test_needs_of_an_ascent_are_those_of_what_it_ascends():
    assert Ascent(own.Preference()).needs == Needs(reference="log_probs", paired="idk")
    method = Method("m", (Ascent(own.Preference()),), Constant((1.0,)))
    assert method.sources == ("forget", "idk")
    assert replace(method, objectives=(NLL("idk"),)).sources == ("idk",)
