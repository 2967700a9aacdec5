"""LoRA, DoRA and last blocks from settings, in the engine and through the verbs."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import conftest
import engine_objectives as own
import expunge
from expunge.adapters import prepare_trainable
from expunge.arguments import UnlearningArguments
from expunge.methods import fine_tune, ngdiff, rmu
from expunge.models import load_model
from expunge.unlearner import Unlearner

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:6], ROWS[6:]
QUICK = {
    "bf16": False,
    "template": "none",
    "seed": 0,
    "max_steps": 3,
    "check_every": 0,
    "learning_rate": 1e-3,
}


def arguments(folder, **settings) -> UnlearningArguments:
    return UnlearningArguments(output_dir=str(folder), use_cpu=True, save_strategy="no", **(QUICK | settings))


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_trains_and_merges(tokenizer, tmp_path, dora):
    run = Unlearner(
        conftest.build_model(),
        arguments(tmp_path, lora_rank=2, lora_dora=dora),
        ngdiff(rows=4),
        tokenizer,
        FORGET,
        RETAIN,
    )
    assert all("lora_" in name for name in trained(run.model))
    assert any("magnitude" in name for name in trained(run.model)) == dora
    run.train()
    inputs = torch.tensor([run.encoded["forget"][0].input_ids])
    run.release()
    with torch.no_grad():
        adapted = run.model(input_ids=inputs).logits
        merged = run.delivered()
        torch.testing.assert_close(merged(input_ids=inputs).logits, adapted, rtol=1e-4, atol=1e-5)
        before = conftest.build_model()(input_ids=inputs).logits
    assert type(merged) is type(conftest.build_model())
    assert not torch.allclose(before, adapted, atol=1e-4)
    assert not any("lora" in name for name in merged.state_dict())


def test_the_same_seed_gives_the_same_adapter(tmp_path):
    torch.manual_seed(1)
    first = prepare_trainable(conftest.build_model(), arguments(tmp_path, lora_rank=2))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = prepare_trainable(conftest.build_model(), arguments(tmp_path, lora_rank=2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(2)
    assert torch.equal(state, torch.get_rng_state())


def test_an_adapter_needs_no_second_model(tokenizer, tmp_path):
    run = Unlearner(
        conftest.build_model(), arguments(tmp_path, lora_rank=2), own.divergence(), tokenizer, FORGET, RETAIN
    )
    run.train()
    assert run.descent.reference.extra_bytes == 0
    assert run.history[0].losses["divergence"] == pytest.approx(0.0, abs=1e-6)


def test_targets_scale_and_last_blocks(tmp_path):
    settings = {"lora_rank": 3, "lora_targets": "q_proj, down_proj", "train_last": 1, "lora_alpha": 12.0}
    model = prepare_trainable(conftest.build_model(), arguments(tmp_path, **settings))
    names = trained(model)
    assert names
    assert all(".layers.1." in name and ("q_proj" in name or "down_proj" in name) for name in names)
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    assert layer.scaling["default"] == 4.0
    everything = prepare_trainable(conftest.build_model(), arguments(tmp_path, lora_rank=1))
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(everything)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert layer.lora_A["default"].weight.shape[0] == 3


def test_only_the_last_blocks_train(tmp_path):
    names = trained(prepare_trainable(conftest.build_model(), arguments(tmp_path, train_last=1)))
    assert names
    assert all(name.startswith("model.layers.1.") for name in names)


def test_parameters_train_by_name(tokenizer, tmp_path):
    """As RMU's authors train: the MLP outputs of some layers alone."""
    settings = {"train_only": r"layers\.[1-9]\.mlp\.down_proj", "learning_rate": 1e-2}
    run = Unlearner(
        conftest.build_model(), arguments(tmp_path, **settings), rmu(layer=2), tokenizer, FORGET, RETAIN
    )
    run.train()
    before = dict(conftest.build_model().named_parameters())
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained(run.model) == {"model.layers.1.mlp.down_proj.weight"}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"train_only": "down_prj"},
            r"found in the name .* 'down_prj' is in none. They are named like model\.",
        ),
        ({"lora_rank": 2, "lora_targets": "q_prj"}, "must name modules .* got 'q_prj'. Did you mean q_proj"),
        ({"lora_rank": 2, "lora_targets": ","}, "must name modules"),
        ({"train_last": 3}, "at most the model's 2 blocks; got 3"),
    ],
)
def test_what_matches_nothing_is_refused_before_training(tokenizer, tmp_path, settings, rule):
    with pytest.raises(ValueError, match=rule):
        Unlearner(
            conftest.build_model(),
            arguments(tmp_path, **settings),
            fine_tune(),
            tokenizer,
            retain_dataset=RETAIN,
        )


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"lora_rank": -1}, "must be at least 0"),
        ({"train_only": "mlp", "lora_rank": 2}, "`train_only` must be left out with `lora_rank`"),
        ({"train_only": "mlp", "train_last": 1}, "`train_only` must be left out"),
        ({"train_only": "mlp("}, r"must be a regular expression; got 'mlp\('"),
        ({"lora_dora": True}, "need a `lora_rank`"),
        ({"lora_4bit": True, "lora_rank": 2}, "`lora_merge` must be False"),
        ({"lora_4bit": True, "lora_bf16": True, "lora_rank": 2, "lora_merge": False}, "`lora_bf16` must be"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, rule):
    with pytest.raises(ValueError, match=rule):
        arguments(tmp_path, **settings)


def test_a_second_adapter_is_refused(tmp_path):
    model = prepare_trainable(conftest.build_model(), arguments(tmp_path, lora_rank=2))
    with pytest.raises(ValueError, match="already has an adapter"):
        prepare_trainable(model, arguments(tmp_path, lora_rank=2))
    for settings in ({"train_last": 1}, {"train_only": "down_proj"}):
        with pytest.raises(
            ValueError, match="must be left out for a model with an adapter, which alone is saved"
        ):
            prepare_trainable(model, arguments(tmp_path, **settings))


def test_targets_are_looked_for_before_the_model_writes_answers(model_folder, monkeypatch):
    monkeypatch.setattr("expunge.runs.complete", lambda *_: pytest.fail("answers were written"))
    sets, wrong = {"forget": FORGET, "retain": RETAIN}, {"lora_rank": 2, "lora_targets": "q_prj"}
    with pytest.raises(expunge.UsageError, match=r"cannot start: `lora_targets` must name .* mean q_proj"):
        expunge.unlearn(model_folder, **sets, method="alt-po", **(QUICK | wrong))


def test_a_run_with_an_adapter_saves_it_merged_or_alone(model_folder, tmp_path):
    quick = QUICK | {"evaluate": False, "lora_rank": 2, "rows": 4}
    sets = {"forget": FORGET, "retain": RETAIN}
    merged = expunge.unlearn(model_folder, **sets, output=tmp_path / "merged", **quick)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    assert merged.record.configuration["lora_rank"] == 2
    assert not (tmp_path / "merged" / "model" / "adapter_config.json").exists()
    alone = expunge.unlearn(model_folder, **sets, output=tmp_path / "alone", lora_merge=False, **quick)
    folder = tmp_path / "alone" / "model"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert not list(folder.glob("model*.safetensors"))
    inputs = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        one, other = saved(input_ids=inputs).logits, load_model(folder)(input_ids=inputs).logits
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert alone.record.models["after"].sha256 != merged.record.models["after"].sha256
