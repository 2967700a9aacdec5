"""QLoRA: a base in 4 bits that stays as it is, and an adapter that trains on it, on a CPU."""

from __future__ import annotations

import json

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn

import conftest
import expunge
from expunge import UsageError
from expunge.adapters import merge_adapter, prepare_trainable
from expunge.arguments import UnlearningArguments
from expunge.four_bits import four_bit
from expunge.models import load_model
from expunge.record import read_record, write_record
from expunge.verify import verify
from expunge.weights import parameter_count, weights_hash, weights_norm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A model with biases, whose matrices have the sizes that kernels for 4 bits want."""
    place = tmp_path_factory.mktemp("even")
    model = conftest.build_model(hidden_size=64, intermediate_size=128, attention_bias=True)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def in_four_bits(folder) -> nn.Module:
    return load_model(folder, quantization=four_bit(CPU), device=CPU)


def codes(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights in 4 bits, by the name that they have without an adapter."""
    named = {name: p for name, p in model.named_parameters() if hasattr(p, "quant_state")}
    return {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in named.items()}


def give(plain: nn.Module, narrow: nn.Module) -> None:
    """Let a model in fp32 hold what one in 4 bits stands for."""
    for name, p in narrow.named_parameters():
        state = getattr(p, "quant_state", None)
        plain.get_parameter(name).data = dequantize_4bit(p.data, state) if state else p.data.float()


def adapted(model: nn.Module, folder) -> nn.Module:
    """With an adapter that does something."""
    args = UnlearningArguments(
        output_dir=str(folder / "unused"), use_cpu=True, lora_rank=2, lora_merge=False, seed=0
    )
    model = prepare_trainable(model, args)
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=generator) / 10
    return model


def test_what_is_quantised_counts_and_measures_as_what_it_stands_for(folder):
    plain, narrow = load_model(folder), in_four_bits(folder)
    assert len(codes(narrow)) == 14
    assert parameter_count(narrow) == parameter_count(plain) == sum(p.numel() for p in plain.parameters())
    assert weights_norm(narrow) == pytest.approx(weights_norm(plain), rel=0.01)
    give(plain, narrow)
    assert weights_norm(narrow) == pytest.approx(weights_norm(plain), rel=1e-6)


def test_gradients_after_an_evaluation_are_those_of_the_dequantised_weights(folder):
    plain, narrow = load_model(folder), in_four_bits(folder)
    give(plain, narrow)
    before = weights_hash(narrow)
    assert {p.dtype for name, p in narrow.named_parameters() if name.endswith("bias")} == {torch.bfloat16}
    plain, narrow = adapted(plain, folder), adapted(narrow, folder)
    gradients = []
    for model in (plain, narrow):
        with torch.no_grad():
            model.eval()(input_ids=IDS)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, expected in gradients[0].items():  # the codes' products are in bf16
        assert torch.linalg.norm(gradients[1][name] - expected) < 0.05 * torch.linalg.norm(expected), name
    assert weights_hash(in_four_bits(folder)) == before
    fresh = codes(in_four_bits(folder))
    assert all(torch.equal(p, fresh[name]) for name, p in codes(narrow).items())


def test_codes_are_kept_whatever_the_processor_and_wherever_the_model_comes_from(folder, monkeypatch):
    """A processor for which bitsandbytes would repack them; a model in memory."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True, raising=False)
    narrow = in_four_bits(folder)
    layers = [m for m in narrow.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    rows, tokenizer = conftest.rows(), conftest.build_tokenizer()
    sets, rest = {"forget": rows[:6], "retain": rows[6:]}, {"max_steps": 1, "check_every": 0}
    settings = {"lora_rank": 2, "lora_merge": False, "template": "none", "evaluate": False} | rest
    result = expunge.unlearn(narrow, tokenizer, **sets, **settings)
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert result.record.models["before"].dtype == "nf4"
    with pytest.raises(UsageError, match="`lora_merge` must be False with weights in few bits"):
        expunge.unlearn(in_four_bits(folder), tokenizer, **sets, lora_rank=2, **rest, template="none")
    with pytest.raises(
        UsageError, match=r"`train_only` must be left out for a model with an adapter, .* or in"
    ):
        expunge.unlearn(in_four_bits(folder), tokenizer, **sets, train_only="mlp", **rest, template="none")


def test_a_run_trains_the_adapter_alone_and_saves_it(folder, tmp_path):
    rows = conftest.rows()
    forget = tmp_path / "forget.jsonl"
    forget.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    result = expunge.unlearn(
        str(folder), forget=forget, retain=rows[9:], output=tmp_path / "run", lora_rank=2, lora_4bit=True,
        lora_merge=False, template="none", seed=0, max_steps=3, check_every=0, rows=4, learning_rate=1e-3,
    )  # fmt: skip
    plain = load_model(folder)
    record = result.record
    assert len(record.history) == 3
    assert record.models["before"].sha256 == weights_hash(in_four_bits(folder))
    assert record.models["before"].parameters == parameter_count(plain)
    assert record.models["before"].dtype == "nf4"
    assert record.configuration["relative_sharpness"] > 0
    fresh = codes(in_four_bits(folder))
    assert all(torch.equal(p, fresh[name]) for name, p in codes(result.model).items())
    second = [p for name, p in result.model.named_parameters() if "lora_B" in name]
    assert len(second) == 14
    assert all(bool(p.any()) for p in second)  # the first block's gradients came through the second's codes
    saved = load_model(tmp_path / "run" / "model")
    ours = dict(result.model.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in saved.named_parameters() if "lora_" in name)
    with pytest.raises(ValueError, match="`lora_merge` must be False with weights in few"):
        merge_adapter(result.model)
    verdicts = {finding.what: finding.verdict for finding in verify(tmp_path / "run")}
    assert {verdicts["files of model/"], verdicts["model/ (after)"]} == {"verified"}
    assert verdicts[f"model before ({folder})"] == "verified"
    other = record.model_copy(
        update={"models": {k: v.model_copy(update={"sha256": "0" * 64}) for k, v in record.models.items()}}
    )
    write_record(other, tmp_path / "run")  # as another device may round
    verdicts = {finding.what: finding.verdict for finding in verify(tmp_path / "run")}
    assert {verdicts["model/ (after)"], verdicts[f"model before ({folder})"]} == {"not checked"}


@pytest.mark.parametrize("held", ["nf4", "bfloat16"])
def test_the_next_request_trains_the_same_adapter_on_weights_held_as_before(folder, tmp_path, held):
    rows, first = conftest.rows(), tmp_path / "one"
    sets = {"forget": rows[:6], "later": rows[6:9], "retain": rows[9:]}
    for name, found in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    paths = {name: tmp_path / f"{name}.jsonl" for name in sets}
    usual = {
        "retain": paths["retain"],
        "template": "none",
        "seed": 0,
        "max_steps": 2,
        "check_every": 0,
        "rows": 4,
    }
    adapter = {"lora_rank": 2, "lora_merge": False, "lora_4bit" if held == "nf4" else "lora_bf16": True}
    expunge.unlearn(str(folder), forget=paths["forget"], output=first, learning_rate=1e-3, **adapter, **usual)
    second = expunge.unlearn(after=first, forget=paths["later"], output=tmp_path / "two", **usual)
    earlier, record = read_record(first), second.record
    assert earlier.models["after"].dtype == record.models["before"].dtype == held
    assert earlier.models["after"].sha256 == record.models["before"].sha256 != record.models["after"].sha256
    assert record.after.first_evaluation.splits["retain"] == earlier.evaluations["before"].splits["retain"]
    ours = load_model(first / "model")
    trained = {name for name, p in ours.named_parameters() if "lora_" in name}
    assert {name for name, p in second.model.named_parameters() if p.requires_grad} == trained
    changed = {k: v.model_copy(update={"sha256": "0" * 64}) for k, v in earlier.models.items()}
    write_record(earlier.model_copy(update={"models": changed}), first)
    why = "Restore them, or go on where it ran" if held == "nf4" else "Restore them."
    with pytest.raises(UsageError, match=rf"the weights differ: they were changed after the run.*{why}"):
        expunge.unlearn(after=first, forget=paths["later"], output=tmp_path / "three", **usual)


def test_four_bits_need_bitsandbytes_and_a_device_it_runs_on(monkeypatch):
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"xpu", "cuda"})
    with pytest.raises(UsageError, match=r"bitsandbytes .* runs on \(cuda, xpu\); the run is on cpu. Leave"):
        four_bit(CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package bitsandbytes: pip install 'expunge"):
        four_bit(CPU)
