"""Methods whose model is merged, end to end on the tiny model: equation, record, resume, budget, adapters."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import conftest
import expunge
from expunge import UsageError
from expunge.arguments import UnlearningArguments
from expunge.catalogue import catalogue
from expunge.merging import TIES
from expunge.methods import Method, task_vector, ties_merge
from expunge.unlearner import Unlearner
from expunge.weightings import Constant

FORGET, RETAIN = conftest.rows()[:6], conftest.rows()[6:]
HOLDOUT = conftest.rows(("Ivy Iris", "Jon Juniper"))
QUICK = {"bf16": False, "template": "none", "seed": 0, "check_every": 0}


@pytest.fixture(scope="module")
def taught(model_folder):
    """The tiny model after it has learned all rows."""
    return expunge.finetune(
        model_folder, data=FORGET + RETAIN, max_steps=200, learning_rate=1e-2, evaluate=False, **QUICK
    )


@pytest.fixture
def model(taught):
    return copy.deepcopy(taught.model)


def unlearner(model, tokenizer, folder, method, **settings) -> Unlearner:
    defaults = {"output_dir": str(folder), "save_strategy": "no", "learning_rate": 1e-3, "max_steps": 6}
    args = UnlearningArguments(**QUICK | defaults | settings)
    return Unlearner(copy.deepcopy(model), args, method, tokenizer, FORGET, RETAIN)


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def test_task_vector_steps_back_from_what_fine_tuning_reached(model, tokenizer, tmp_path):
    learn = Method("learn", task_vector().objectives, Constant((1.0,)))
    learned = unlearner(model, tokenizer, tmp_path, learn)
    learned.train()
    run = unlearner(model, tokenizer, tmp_path, task_vector(alpha=0.6))
    run.train()
    start = weights(model)
    expected = start - 0.6 * (weights(learned.model) - start)
    torch.testing.assert_close(weights(run.model), expected, rtol=0, atol=1e-7)
    assert run.stop.reason == "step-limit"
    assert run.stop.sentence.endswith("The model was merged at coefficient -0.6.")
    assert [step.losses for step in run.history] == [step.losses for step in learned.history]
    assert not run.monitor.state.probes


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_ties_merge_is_two_runs_from_one_start(model, tokenizer, tmp_path, rank):
    """Each with its own weights, optimizer and schedule, over all rows at once."""
    if rank:
        pytest.importorskip("peft")
    settings = {
        "per_device_train_batch_size": 16,
        "optim": "sgd",
        "learning_rate": 0.03,
        "lr_scheduler_type": "linear",
        "lora_rank": rank,
        "lora_merge": False,
    }
    method = ties_merge(density=1.0, tolerance=math.inf)
    run = unlearner(model, tokenizer, tmp_path, method, **settings)
    start = [parameter.detach().clone() for parameter in run.monitor.parameters]
    run.train()
    changes = []
    for weighting in (method.weighting, *method.merge.further):
        alone = Method("alone", method.objectives, weighting)
        part = unlearner(model, tokenizer, tmp_path, alone, **settings | {"max_steps": 3})
        part.train()
        changes.append([p.detach() for p in part.monitor.parameters])
        rates = [step.learning_rate for step in run.history]
        assert [step.learning_rate for step in part.history] == rates[:3] == rates[3:]
    names = [name for name, p in run.trained.named_parameters() if p.requires_grad]
    for name, merged, zero, one, two in zip(names, run.monitor.parameters, start, *changes, strict=True):
        base = torch.zeros_like(zero) if "lora_A" in name else zero
        moves = torch.stack([one - base, two - base])
        clear = moves.sum(0).abs() > 1e-6  # elsewhere rounding elects the sign
        assert clear.float().mean() > 0.2 or "lora_A" in name  # rows of tokens that nobody writes do not move
        expected = base + TIES(1.0)(moves)
        torch.testing.assert_close(merged.detach()[clear], expected[clear], rtol=1e-4, atol=2e-6)
    assert not all(torch.equal(p, zero) for p, zero in zip(run.monitor.parameters, start, strict=True))
    assert [step.weights["npo(forget)"] for step in run.history] == [0.4] * 3 + [0.3] * 3
    assert len(run.history) == run.stop.step == 6
    assert [probe.decision for probe in run.monitor.state.probes] == [
        "within budget",
        "merged at 1: within budget",
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_an_adapter_is_negated_through_the_delivered_weights(model, tokenizer, tmp_path):
    pytest.importorskip("peft")
    learn = Method("learn", task_vector().objectives, Constant((1.0,)))
    delivered = []
    for method in (learn, task_vector(alpha=0.5)):
        run = unlearner(model, tokenizer, tmp_path, method, lora_rank=2)
        run.train()
        run.release()
        delivered.append(weights(run.delivered()))
    start = weights(model)
    torch.testing.assert_close(delivered[1], start - 0.5 * (delivered[0] - start), rtol=0, atol=1e-6)
    assert not torch.allclose(delivered[0], start, atol=1e-5)


class StopAt(TrainerCallback):
    """Asks for an interruption after so many steps."""

    def __init__(self, run: Unlearner, step: int) -> None:
        self.run, self.step = run, step

    def on_optimizer_step(self, args, state, control, **_):
        if state.global_step == self.step - 1:
            self.run.interrupt.requested = True


@pytest.fixture(scope="module")
def whole(taught, tokenizer, tmp_path_factory):
    """An uninterrupted run of two trainings of three steps."""
    run = unlearner(taught.model, tokenizer, tmp_path_factory.mktemp("whole"), ties_merge())
    run.train()
    return run


@pytest.mark.parametrize("step", [2, 3, 5, 6])
def test_a_merged_run_resumes_in_the_right_training(model, tokenizer, tmp_path, whole, step):
    """Within the first, between the two, within the second, and before the merge: the same bits."""
    settings = {"save_strategy": "steps", "save_steps": 1000}
    broken = unlearner(model, tokenizer, tmp_path, ties_merge(), **settings)
    broken.add_callback(StopAt(broken, step))
    broken.train()
    assert (broken.stop.reason, broken.state.global_step) == ("interrupted", step)
    assert torch.equal(weights(broken.model), weights(model))  # neither trained state is what was asked for
    resumed = unlearner(model, tokenizer, tmp_path, ties_merge(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert [s.losses for s in resumed.history] == [s.losses for s in whole.history]
    assert resumed.stop == whole.stop
    assert resumed.monitor.state.probes == whole.monitor.state.probes


def test_the_verb_forgets_within_tolerance_and_records_it(taught, tokenizer, model, tmp_path):
    """α is the largest of the grid at which the merged model keeps the retain rows."""
    result = expunge.unlearn(
        model,
        tokenizer,
        forget=FORGET,
        retain=RETAIN,
        holdout=HOLDOUT,
        method="task-vector",
        output=tmp_path / "out",
        tolerance=0.3,
        max_steps=10,
        learning_rate=3e-3,
        **QUICK | {"check_every": 5},
    )
    record = result.record
    before, after = (record.evaluations[stage].splits for stage in ("before", "after"))
    assert after["forget"]["nll"].value > 3 * before["forget"]["nll"].value + 0.3
    start, *tried = record.probes
    assert (start.step, start.decision) == (0, "within budget")
    assert [probe.decision for probe in tried[:-1]] == [
        f"merged at {-(20 - i) / 20:g}: over budget" for i in range(len(tried) - 1)
    ]
    assert tried[-1].decision.endswith("within budget")
    assert tried[-1].retain_loss <= start.retain_loss + 0.3 < tried[0].retain_loss
    assert [check.step for check in record.checks] == [0, 10]
    assert record.stop.reason == ("forgotten" if record.checks[-1].met else "step-limit")
    assert record.stop.step == len(record.history) == 10
    assert "coefficients=(-1.0, -0.95" in record.configuration["merge"]
    assert "merged at" in result.report.read_text()
    saved = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    assert torch.equal(weights(saved), weights(result.model))


def test_the_verb_resumes_a_merged_run(taught, whole, tokenizer, tmp_path, monkeypatch):
    sets = {"forget": FORGET, "retain": RETAIN, "method": "ties-merge", "evaluate": False}
    settings = {**QUICK, "max_steps": 6, "learning_rate": 1e-3}
    source = tmp_path / "model"
    taught.model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    original = Unlearner.after_optimizer

    def interrupting(self):
        original(self)
        self.interrupt.requested = self.state.global_step == 4

    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", interrupting)
        broken = expunge.unlearn(source, **sets, output=tmp_path / "out", **settings)
    assert broken.record.stop.reason == "interrupted"
    resumed = expunge.unlearn(source, **sets, output=tmp_path / "out", resume=True, **settings)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.record.stop == whole.stop


def test_a_checkpoint_of_another_start_is_refused(model, tokenizer, tmp_path):
    first = unlearner(model, tokenizer, tmp_path, task_vector(alpha=1.0), save_strategy="steps", save_steps=2)
    first.train()
    other = unlearner(conftest.build_model(1), tokenizer, tmp_path, task_vector(alpha=1.0))
    with pytest.raises(ValueError, match="same data, method and settings"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_where_no_coefficient_is_within_budget_the_start_returns(model, tokenizer, tmp_path):
    run = unlearner(model, tokenizer, tmp_path, task_vector(tolerance=1e-9), learning_rate=0.1)
    run.train()
    assert (run.stop.reason, run.stop.restored_step) == ("retain-budget", 0)
    assert "At every coefficient the retain loss of the merged model" in run.stop.sentence
    assert len(run.monitor.state.probes) == 1 + 20
    assert torch.equal(weights(run.model), weights(model))


@pytest.mark.parametrize("method", [task_vector(alpha=1.0), ties_merge()], ids=lambda m: m.name)
def test_a_diverged_training_returns_to_the_start(model, tokenizer, tmp_path, method):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **_):
            if state.global_step == 4:
                with torch.no_grad():
                    model.model.norm.weight.fill_(float("inf"))

    run = unlearner(model, tokenizer, tmp_path, method)
    run.add_callback(Poison())
    run.train()
    assert (run.stop.reason, run.stop.restored_step, len(run.history)) == ("diverged", 0, 4)
    assert torch.equal(weights(run.model), weights(model))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_what_cannot_run_is_refused_before_training(model_folder, tmp_path):
    sets = {"forget": FORGET, "retain": RETAIN, "output": tmp_path / "out"}
    for settings, message in (
        ({"method": "ties-merge", "max_steps": 1}, "at least one for each training"),
        ({"method": "task-vector", "retain": None}, "needs retain records"),
        ({"method": "task-vector", "lora_rank": 2, "lora_dora": True}, "Set lora_dora=false"),
        ({"method": "task-vector", "alpha": -1}, "`alpha` must be positive"),
        ({"method": "task-vektor"}, "Did you mean task-vector?"),
        ({"method": "ties-merge", "densty": 0.5}, "Did you mean density?"),
    ):
        with pytest.raises(UsageError, match=message.replace("?", r"\?")):
            expunge.unlearn(model_folder, **sets | settings, **QUICK)
    assert not (tmp_path / "out" / "model").exists()


def test_they_are_listed():
    methods = catalogue()["methods"]
    assert methods["task-vector"].startswith("Task vector negation")
    assert methods["ties-merge"].startswith("TIES merge")
