"""The verbs from Python, end to end on the tiny model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import conftest
import expunge
from expunge import UsageError, methods
from expunge.record import read_record, write_record

ROWS = conftest.rows()
FORGET, RETAIN, HOLDOUT = ROWS[:6], ROWS[6:], conftest.rows(("Ivy Iris", "Jon Juniper"))
QUICK = {"bf16": False, "template": "none", "seed": 0}
TINY = {**QUICK, "max_steps": 100, "learning_rate": 1e-3, "tolerance": 0.5, "rows": 10, "check_every": 2}


@pytest.fixture(scope="module")
def taught(model_folder, tmp_path_factory):
    """A folder with the tiny model after it has learned all rows."""
    folder = tmp_path_factory.mktemp("taught")
    result = expunge.finetune(
        model_folder, data=FORGET + RETAIN, output=folder, max_steps=300, learning_rate=5e-3, **QUICK
    )
    assert result.record.stop.reason == "learned"
    assert result.record.kind == "finetune"
    assert result.record.evaluations["before"].splits["train"]["leak"].value == 0.0
    assert result.record.evaluations["after"].splits["train"]["leak"].value > 0.9
    return folder / "model"


@pytest.fixture(scope="module")
def result(taught, tmp_path_factory):
    """One whole run with a holdout."""
    folder = tmp_path_factory.mktemp("out") / "run"
    sets = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}
    return expunge.unlearn(taught, **sets, output=folder, **TINY)


def test_a_run_leaves_model_record_and_report(result, taught):
    assert sorted(path.name for path in result.folder.iterdir()) == [
        ".expunge",
        ".lock",
        "model",
        "record.json",
        "report.html",
    ]
    assert read_record(result.folder) == result.record
    assert (result.folder / "report.html").read_text().lower().startswith("<!doctype html>")
    saved = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    before = AutoModelForCausalLM.from_pretrained(taught)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])
    assert any(not torch.equal(v, before.state_dict()[n]) for n, v in saved.state_dict().items())


def test_the_record_holds_what_was_asked(result):
    record = result.record
    assert record.stop.reason == "forgotten"
    assert set(record.evaluations) == {"before", "after"}
    assert set(record.evaluations["after"].splits) == {"forget", "retain", "holdout"}
    assert record.evaluations["before"].splits["forget"]["leak"].value > 0.8
    assert record.evaluations["after"].splits["forget"]["leak"].value <= 0.2
    assert "membership_loss_auc" in record.evaluations["after"].splits["forget"]
    assert {name: data.rows for name, data in record.data.items()} == {
        "forget": 6,
        "retain": 10,
        "holdout": 4,
    }
    assert record.models["before"].sha256 != record.models["after"].sha256
    assert record.peak_memory_bytes > 0
    assert {"load", "train", "save", "evaluate before", "evaluate after"} <= record.timings.keys()
    assert record.configuration["learning_rate"] == 1e-3
    assert record.configuration["retain_budget"]["tolerance"] == 0.5
    assert len(record.history) == record.stop.step
    assert {sample.split for sample in record.samples} == {"forget", "retain", "holdout"}
    assert set(record.samples[0].generations) == {"before", "after"}


def test_the_same_seed_gives_the_same_run(result, taught):
    again = expunge.unlearn(taught, forget=FORGET, retain=RETAIN, holdout=HOLDOUT, evaluate=False, **TINY)
    assert again.folder is None
    assert again.report is None
    assert again.record.models["after"].sha256 == result.record.models["after"].sha256


def test_a_model_in_memory_and_a_method_object(taught, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(taught)
    result = expunge.unlearn(
        model, tokenizer, forget=FORGET, method=methods.grad_ascent(), evaluate=False, max_steps=2, **QUICK
    )
    assert result.model is model
    assert result.record.method == "grad-ascent"
    with pytest.raises(ValueError, match="`tokenizer` must be given"):
        expunge.unlearn(model, forget=FORGET, method="grad-ascent")


def test_evaluate_compares_original_and_reference(taught, model_folder, result, tmp_path):
    compared = expunge.evaluate(
        result.folder / "model",
        original=taught,
        reference=model_folder,
        forget=FORGET,
        holdout=HOLDOUT,
        output=tmp_path / "check",
        **QUICK,
    )
    leak = {stage: e.splits["forget"]["leak"].value for stage, e in compared.record.evaluations.items()}
    assert leak["before"] > 0.8
    assert leak["after"] == result.record.evaluations["after"].splits["forget"]["leak"].value
    assert leak["control"] == 0.0
    assert not (tmp_path / "check" / "model").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ngdif"}, "Did you mean ngdiff?"),
        ({"method": "ngdiff", "retain": None}, "needs retain records"),
        ({"learning_rat": 1e-3}, "Did you mean learning_rate?"),
        ({"max_steps": 0}, "must be at least 1"),
        ({"tolerance": -1.0}, "must be positive"),
        ({"retain": FORGET[:2] + RETAIN}, "retain"),
        ({"holdout": FORGET[:1]}, "holdout"),
        ({"holdout": RETAIN[:1]}, "holdout"),
        ({"learning_rate": "fast"}, "learning_rate must be a valid number"),
        ({"max_steps": 1.5}, "max_steps must be"),
        ({"template": "poem"}, "template must be"),
        ({"tolerence": 0.1}, "Did you mean tolerance?"),
        ({"resum": True}, "Did you mean resume?"),
        ({"forget": []}, "forget"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_before_a_model_is_loaded(settings, message):
    """The model does not exist: reaching it would give another message."""
    sets = {"forget": FORGET, "retain": RETAIN}
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        expunge.unlearn("no/such-model", **{**sets, **settings})


def test_records_beyond_the_context_are_refused_before_the_weights_are_read(model_folder, tmp_path):
    """The folder has a tokenizer and a configuration, but no weights."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    with pytest.raises(UsageError, match="context"):
        expunge.unlearn(
            tmp_path, forget=[{"prompt": "a", "response": "b " * 500}], method="grad-ascent", **QUICK
        )


def test_an_interrupted_run_resumes_to_the_same_model(result, taught, tmp_path, monkeypatch):
    """Interrupted in the middle, then continued with `resume`: the same weights as without interruption."""
    from expunge.unlearner import Unlearner

    original = Unlearner.after_optimizer

    def interrupting(self):
        original(self)
        if self.state.global_step == 2:
            self.interrupt.requested = True

    sets = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}
    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", interrupting)
        broken = expunge.unlearn(taught, **sets, output=tmp_path / "out", evaluate=False, **TINY)
    assert broken.record.stop.reason == "interrupted"
    assert not (tmp_path / "out" / "model").exists()
    with pytest.raises(UsageError, match="--resume"):
        expunge.unlearn(taught, **sets, output=tmp_path / "out", **TINY)
    with pytest.raises(UsageError, match=r"same data, method and settings; seed was 0 in .* and is 1 now"):
        expunge.unlearn(taught, **sets, output=tmp_path / "out", resume=True, **{**TINY, "seed": 1})
    resumed = expunge.unlearn(taught, **sets, output=tmp_path / "out", resume=True, **TINY)
    assert resumed.record.models["after"].sha256 == result.record.models["after"].sha256
    assert [step.losses for step in resumed.record.history] == [step.losses for step in result.record.history]
    assert not (tmp_path / "out" / "checkpoints").exists()
    with pytest.raises(UsageError, match="has ended"):
        expunge.unlearn(taught, **sets, output=tmp_path / "out", resume=True, **TINY)


def test_an_interrupted_evaluation_resumes_without_training_again(result, taught, tmp_path, monkeypatch):
    """Ctrl-C after the training: model and history are on disk; `resume` only evaluates."""
    from expunge.runs import Run

    original = Run.evaluate

    def interrupting(self, stage, *words):
        if stage == "after":
            raise KeyboardInterrupt
        original(self, stage, *words)

    sets = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}
    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", interrupting)
        with pytest.raises(KeyboardInterrupt):
            expunge.unlearn(taught, **sets, output=tmp_path / "out", **TINY)
    with pytest.raises(UsageError, match="same model, data, method and seed"):
        expunge.unlearn(
            taught, **sets | {"forget": FORGET[:-1]}, output=tmp_path / "out", resume=True, **TINY
        )
    for changed, message in (
        ({"learning_rate": 7e-3}, f"learning_rate was {TINY['learning_rate']:g} in .* and is 0.007 now"),
        ({"template": "auto"}, "template was none in .* and is auto now"),
        ({"tolerance": 0.4}, r"retain_budget.tolerance was 0.5 in .* and is 0.4 now"),
    ):
        with pytest.raises(UsageError, match=message):
            expunge.unlearn(taught, **sets, output=tmp_path / "out", resume=True, **{**TINY, **changed})
    known = read_record(tmp_path / "out")
    left = {"notes": ["Of the first session."], "peak_memory_bytes": 2**60}
    write_record(known.model_copy(update=left), tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("expunge.unlearner.Unlearner.train", lambda *_, **__: pytest.fail("trained again"))
        resumed = expunge.unlearn(taught, **sets, output=tmp_path / "out", resume=True, **TINY)
    assert resumed.record.models["after"].sha256 == result.record.models["after"].sha256
    assert resumed.record.evaluations["after"].splits == result.record.evaluations["after"].splits
    assert resumed.record.history[-1].losses == result.record.history[-1].losses
    assert resumed.record.configuration == known.configuration
    assert resumed.record.timings["train"] == known.timings["train"]
    assert resumed.record.timings.keys() == result.record.timings.keys()
    assert resumed.record.peak_memory_bytes == 2**60
    assert resumed.record.notes == ["Of the first session.", *result.record.notes]


def test_an_interrupted_evaluation_of_a_finetuning_resumes_without_training_again(
    model_folder, tmp_path, monkeypatch
):
    from expunge.runs import Run

    original = Run.evaluate

    def interrupting(self, stage, *words):
        if stage == "after":
            raise KeyboardInterrupt
        original(self, stage, *words)

    words = {"data": FORGET, "output": tmp_path / "out", "max_steps": 3, **QUICK}
    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", interrupting)
        with pytest.raises(KeyboardInterrupt):
            expunge.finetune(model_folder, **words)
    known = read_record(tmp_path / "out")
    with pytest.raises(UsageError, match=r"max_steps was 3 in .* and is 4 now"):
        expunge.finetune(model_folder, **{**words, "max_steps": 4}, resume=True)
    with monkeypatch.context() as patched:
        patched.setattr("expunge.unlearner.Unlearner.train", lambda *_, **__: pytest.fail("trained again"))
        resumed = expunge.finetune(model_folder, **words, resume=True).record
    assert resumed.models["after"] == known.models["after"]
    assert (resumed.history, resumed.stop) == (known.history, known.stop)
    assert "after" in resumed.evaluations
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_overwrite_waits_until_the_input_is_accepted(result, taught, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(result.folder, out)
    sets = {"forget": FORGET, "retain": RETAIN}
    for model in ("no-such-model", out / "model"):
        with pytest.raises(UsageError):
            expunge.unlearn(model, **sets, output=out, overwrite=True, **TINY)
        assert read_record(out) == result.record
        assert (out / "model" / "model.safetensors").is_file()
    expunge.unlearn(taught, **sets, output=out, overwrite=True, evaluate=False, **{**TINY, "max_steps": 1})
    assert len(read_record(out).history) == 1


def test_a_refused_command_does_not_block_the_next(taught, tmp_path):
    sets = {"forget": FORGET, "retain": RETAIN, "output": tmp_path / "out"}
    with pytest.raises(UsageError):
        expunge.unlearn("no-such-model", **sets, **TINY)
    done = expunge.unlearn(taught, **sets, evaluate=False, **{**TINY, "max_steps": 1})
    assert done.report.is_file()


def test_a_diverged_run_without_a_good_state_saves_no_model(taught, tmp_path, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(taught)
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    done = expunge.unlearn(
        model,
        tokenizer,
        forget=FORGET,
        method="grad-ascent",
        output=tmp_path / "out",
        evaluate=False,
        **QUICK,
    )
    assert done.record.stop.reason == "diverged"
    assert not (tmp_path / "out" / "model").exists()
    assert any("no model was saved" in note for note in done.record.notes)


def test_duplicates_are_reported(taught):
    result = expunge.unlearn(
        taught, forget=FORGET + FORGET[:2], method="grad-ascent", evaluate=False, max_steps=1, **QUICK
    )
    assert result.record.data["forget"].duplicates == 2
    assert any("2 of 8 forget rows repeat" in note for note in result.record.notes)


def test_files_are_hashed(taught, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FORGET))
    import hashlib

    result = expunge.unlearn(taught, forget=path, method="grad-ascent", evaluate=False, max_steps=1, **QUICK)
    assert result.record.data["forget"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_method_demands_is_looked_at_before_the_model_writes_anything(model_folder, monkeypatch):
    monkeypatch.setattr("expunge.material.write_retain", lambda *_: pytest.fail("texts were sampled"))
    with pytest.raises(UsageError, match=r"cannot start: .*layer"):
        expunge.unlearn(model_folder, forget=FORGET, method="rmu", layer=40, self_retain=5, **QUICK)
