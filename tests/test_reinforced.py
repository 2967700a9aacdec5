"""Generic labels (Who's Harry Potter), against equation 1, or the best other guess, written out by hand."""

from __future__ import annotations

import pytest
import torch

import conftest
import expunge
from expunge import UsageError
from expunge.arguments import UnlearningArguments
from expunge.methods import whp
from expunge.models import load_model
from expunge.observation import generic_labels
from expunge.unlearner import Unlearner
from expunge.weights import weights_hash

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:6], ROWS[6:]


@pytest.fixture(scope="module")
def reinforced(model_folder, tmp_path_factory):
    """The tiny model, taught the forget set."""
    folder = tmp_path_factory.mktemp("reinforced")
    expunge.finetune(
        model_folder, data=FORGET, output=folder, max_steps=20, learning_rate=1e-2, evaluate=False,
        bf16=False, per_device_train_batch_size=6, template="none", seed=0,
    )  # fmt: skip
    return folder / "model"


def labels_by_hand(first, second, row, alpha: float) -> list[int]:
    """argmax of v - α max(0, r - v) at every label position of one row, with loops."""
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids).logits[0].double().tolist() for m in (first, second))
    found = []
    for place in range(row.prompt_length - 1, len(row.input_ids) - 1):
        scores = [v - alpha * max(0.0, r - v) for v, r in zip(one[place], other[place], strict=True)]
        found.append(max(range(len(scores)), key=scores.__getitem__))
    return found


def best_others(model, row) -> list[int]:
    """The best token beside the target at every label position of one row, with loops."""
    with torch.no_grad():
        scores = model.eval()(input_ids=torch.tensor([row.input_ids])).logits[0].double().tolist()
    places = scores[row.prompt_length - 1 : -1]
    return [
        max((v for v in range(len(z)) if v != y), key=z.__getitem__)
        for z, y in zip(places, row.labels, strict=True)
    ]


def trainer(model_folder, tokenizer, folder, settings, **recipe) -> Unlearner:
    args = UnlearningArguments(
        output_dir=str(folder), use_cpu=True, template="none", check_every=0,
        per_device_train_batch_size=6, save_strategy="no", **{"bf16": False, "max_steps": 1} | settings,
    )  # fmt: skip
    return Unlearner(load_model(model_folder), args, whp(**recipe), tokenizer, FORGET, RETAIN)


@pytest.mark.parametrize(
    ("alpha", "settings"),
    [(0.5, {}), (5.0, {}), (5.0, {"bf16": True}), (5.0, {"lora_rank": 2})],
    ids=["0.5", "5", "bf16", "adapter"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_labels_are_those_of_the_equation(alpha, settings, model_folder, reinforced, tokenizer, tmp_path):
    run = trainer(model_folder, tokenizer, tmp_path, settings, reinforced=str(reinforced), alpha=alpha)
    (objective,) = run.method.objectives
    assert run.descent.reference is None
    first, second = load_model(model_folder), load_model(reinforced)
    expected = [labels_by_hand(first, second, row, alpha) for row in run.encoded["forget"]]
    run.train()
    assert run.descent.reference is None  # two models were asked once; none stands beside the run
    found = run.facts.values["forget"][generic_labels(objective.needs.generic)]
    assert [part.tolist() for part in found] == expected
    targets = [list(row.labels) for row in run.encoded["forget"]]
    assert sum(a != b for a, b in zip(expected, targets, strict=True)) > 0
    losses = []
    for row, labels in zip(run.encoded["forget"], expected, strict=True):
        with torch.no_grad():
            scores = first(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        losses += [-float(scores[row.prompt_length - 1 + i, y]) for i, y in enumerate(labels)]
    logged = run.history[0].losses["replacement(forget)@all"]
    assert logged == pytest.approx(sum(losses) / len(losses), rel=1e-2 if run.args.bf16 else 1e-5)


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["full", "adapter"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_without_a_second_model_they_are_the_best_other_guess(settings, model_folder, tokenizer, tmp_path):
    run = trainer(model_folder, tokenizer, tmp_path, settings | {"max_steps": 2})
    model = load_model(model_folder)
    expected = [best_others(model, row) for row in run.encoded["forget"]]
    run.train()
    assert run.descent.reference is None  # nothing is copied, and nothing asked again
    assert [part.tolist() for part in run.facts.values["forget"]["generic"]] == expected
    entities = [part.tolist() for part in run.facts.values["forget"]["selected/entities"]]
    losses = []
    for row, labels, chosen in zip(run.encoded["forget"], expected, entities, strict=True):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        places = range(row.prompt_length - 1, len(row.input_ids) - 1)
        told = zip(places, labels, chosen, strict=True)
        losses += [-float(scores[place, y]) for place, y, counts in told if counts]
    assert 0 < len(losses) < sum(map(len, expected))
    assert run.history[0].losses["replacement(forget)@entities"] == pytest.approx(
        sum(losses) / len(losses), rel=1e-5
    )


def test_a_resumed_run_asks_the_second_model_no_more(model_folder, reinforced, tmp_path, monkeypatch):
    sets = {"forget": FORGET, "retain": RETAIN}
    settings = {
        "method": "whp", "reinforced": str(reinforced), "output": tmp_path / "out", "max_steps": 4, "seed": 0,
        "template": "none", "bf16": False, "check_every": 0, "evaluate": False, "save_steps": 2,
    }  # fmt: skip
    original = Unlearner.after_optimizer

    def stop(self):
        original(self)
        if self.state.global_step == 1:
            self.interrupt.requested = True  # as Ctrl-C would

    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", stop)
        first = expunge.unlearn(model_folder, **sets, **settings)
    assert first.record.stop.reason == "interrupted"
    monkeypatch.setattr("expunge.facts.load_model", lambda *_: pytest.fail("asked again"))
    second = expunge.unlearn(model_folder, **sets, resume=True, **settings)
    assert second.record.stop.reason == "step-limit"
    told = second.record.configuration["objectives"]["replacement(forget)@all"]
    assert f"reinforced='{reinforced}', alpha=5.0" in told
    assert second.record.models["reinforced"].sha256 == weights_hash(load_model(reinforced))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_reinforced_model_must_be_fit(model_folder, reinforced, tmp_path):
    conftest.build_model(vocab_size=400).save_pretrained(tmp_path / "other")
    sets = {"forget": FORGET, "retain": RETAIN, "method": "whp", "max_steps": 1, "template": "none"}
    with pytest.raises(
        UsageError, match=r"same model taught further, with its vocabulary of 384 tokens; .* 400"
    ):
        expunge.unlearn(model_folder, reinforced=str(tmp_path / "other"), **sets)
    with pytest.raises(
        UsageError, match=r"must have been taught further; .* has the weights of the model itself"
    ):
        expunge.unlearn(model_folder, reinforced=str(model_folder), **sets)
    narrow = {"lora_rank": 2, "lora_merge": False, "lora_bf16": True}
    with pytest.raises(UsageError, match="`reinforced` must be left out with `lora_4bit`"):
        expunge.unlearn(model_folder, reinforced=str(reinforced), **sets, **narrow)
    with pytest.raises(UsageError, match="`alpha` must be left out without `reinforced`"):
        expunge.unlearn(model_folder, alpha=2.0, **sets)
    with pytest.raises(UsageError, match="must not remove an input"):
        expunge.unlearn(
            model_folder, reinforced=str(reinforced), output=reinforced.parent, overwrite=True, **sets
        )
    assert (reinforced / "config.json").is_file()
    with pytest.raises(UsageError, match="nowhere"):
        expunge.unlearn(model_folder, reinforced=str(tmp_path / "nowhere"), **sets)
