"""The plan's counts against real models and real training, and its arithmetic on an 8B configuration."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from conftest import build_model
from expunge import UnlearningArguments
from expunge.adapters import prepare_trainable
from expunge.cli import app
from expunge.errors import UsageError
from expunge.footprint import Living, Shape, saved, sizes
from expunge.hardware import DEVICES, HEADROOM
from expunge.methods import METHODS, Method, grad_diff, ngdiff, sugd
from expunge.methods.difference import fine_tune
from expunge.plan import Request, _changed, _passes, _tokens_per_step, _variants, cheapest, moments, plan
from expunge.planning import plan_run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

EIGHT = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
"""Llama-3.1-8B, written by hand from its published configuration."""

LORA = {"lora_rank": 16, "lora_merge": False}


def arguments(tmp_path, **settings) -> UnlearningArguments:
    return UnlearningArguments(output_dir=str(tmp_path), use_cpu=True, **{"bf16": True} | settings)


@pytest.mark.parametrize(
    "settings", [{}, {"lora_rank": 4}, {"train_last": 1}, {"train_only": "mlp"}], ids=str
)
def test_counts_are_those_of_the_real_model(settings, tmp_path):
    args = arguments(tmp_path, **settings)
    model = build_model()
    counted = sizes(model.config, args)
    real = prepare_trainable(model, args)
    assert counted.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert counted.frozen == sum(p.numel() for p in real.parameters() if not p.requires_grad)
    assert counted.tied
    assert counted.head == model.get_output_embeddings().weight.numel()


@pytest.mark.parametrize("bf16", [False, True])
def test_traced_activations_are_what_a_real_pass_saves(bf16, tmp_path):
    """The same hooks on the real model with real numbers, at all its blocks; the trace sees two."""
    torch.manual_seed(0)
    config = build_model().config
    config.num_hidden_layers = 4
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    owned = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}

    def pack(tensor):
        if (key := tensor.untyped_storage()._cdata) not in owned:
            held[key] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", enabled=bf16):
        logits = model(
            input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=False, logits_to_keep=20
        ).logits
    held.pop(logits.untyped_storage()._cdata, None)
    found = saved(config, arguments(tmp_path, bf16=bf16), Shape(3, 40, 20), on_cpu=True)
    assert found.activations + found.copies == pytest.approx(sum(held.values()), rel=0.03)


def test_ngdiff_with_lora_on_8b_fits_24_gb(tmp_path):
    """8 + 8 rows of 256 tokens on one 24 GB card: the base in bf16, activations recomputed."""
    args = arguments(tmp_path, lora_bf16=True, gradient_checkpointing=True, **LORA)
    request = Request(EIGHT, METHODS["ngdiff"](), args, device=DEVICES["l4"], tokens=256, labels=128)
    found = plan(request)
    assert sizes(EIGHT, args).frozen == 8_030_261_248
    assert sizes(EIGHT, args).trained == 41_943_040
    assert 16e9 < found.peak < 24e9
    assert found.fits
    assert found.parts["weights"] == 2 * 8_030_261_248 + 4 * 41_943_040
    whole = plan(replace(request, args=arguments(tmp_path, gradient_checkpointing=True)))
    assert whole.peak > 16 * 8.03e9  # fp32 weights, moments, gradient
    assert not whole.fits


def test_gradients_grow_with_objectives_and_shrink_with_buffers(tmp_path):
    config = build_model().config
    trained = 4 * sizes(config, arguments(tmp_path)).trained

    def gradients(method: str, **settings) -> int:
        args = arguments(tmp_path, diagnose_every=0, **settings)
        request = Request(config, METHODS[method](), args, device=DEVICES["h100"])
        return moments(request, sizes(config, args))["optimizer step"]["gradients"]

    assert gradients("ngdiff") == 2 * trained
    assert gradients("mollm") == 3 * trained
    assert gradients("grad-diff") == trained
    assert gradients("ngdiff", gradient_buffers="bf16") == trained * 3 // 2
    assert gradients("ngdiff", gradient_buffers="cpu") == trained


def test_shards_divide_what_replicas_repeat(tmp_path):
    config = EIGHT
    args = arguments(tmp_path, gradient_checkpointing=True)
    request = Request(config, METHODS["ngdiff"](), args, gpus=8, device=DEVICES["h100"])
    replicas, args.fsdp = plan(request), True
    shards = plan(request)
    assert not replicas.fits
    assert shards.fits
    for name in ("weights", "optimizer state", "last good state"):
        assert shards.parts[name] == pytest.approx(replicas.parts[name] / 8, rel=1e-6)
    assert shards.tokens_per_second == replicas.tokens_per_second


def test_the_suggestion_is_the_cheapest_that_fits(tmp_path):
    request = Request(EIGHT, METHODS["ngdiff"](), arguments(tmp_path), device=DEVICES["a100-40gb"])
    found = cheapest(request)
    assert found is not None
    assert found.fits
    assert found.changes["lora_rank"] == 16
    small = replace(request, device=DEVICES["l4"], config=build_model().config)
    asked = plan(small)
    assert asked.fits
    assert cheapest(small).changes == {}


def test_time_counts_backward_passes(tmp_path):
    device = DEVICES["h100"]

    def rate(method: str, **settings) -> float:
        args = arguments(tmp_path, **settings)
        return plan(Request(EIGHT, METHODS[method](), args, device=device)).tokens_per_second

    assert rate("mollm") < rate("ngdiff", sharpness=0.0) == rate("grad-diff")
    assert rate("ngdiff") == pytest.approx(rate("grad-diff") * 2 / 3)  # the forget rows pass twice
    assert rate("grad-diff", sharpness=0.1) == pytest.approx(rate("ngdiff"))
    assert rate("ngdiff", refresh_every=4) > rate("ngdiff")
    latent = rate("ngdiff", sharpness=0.0, latent_radius=1.0, latent_layers="1", latent_steps=3)
    assert latent == pytest.approx(rate("grad-diff") * 2 / 5)
    assert rate("ngdiff", gradient_checkpointing=True) == pytest.approx(rate("ngdiff") * 6 / 8)
    assert rate("mollm") < rate("mollm", lora_rank=16)


def test_a_sharp_pass_holds_the_weights_twice(tmp_path):
    def parts(method: Method, **settings) -> dict[str, int]:
        args = arguments(tmp_path, **settings)
        request = Request(EIGHT, method, args, device=DEVICES["h100"])
        return moments(request, sizes(EIGHT, args))["end of the last backward pass"]

    sharp, plain = parts(ngdiff()), parts(ngdiff(), sharpness=0.0)
    assert sharp["copy of the weights for sharpness"] == sharp["weights"]
    assert sum(sharp.values()) == sum(plain.values()) + sharp["weights"]
    assert parts(fine_tune(), sharpness=0.1)["copy of the weights for sharpness"] == 0
    for buffers in ("bf16", "cpu"):  # the retain gradient, the last, never waits
        assert parts(ngdiff(), gradient_buffers=buffers)["gradients"] == 2 * sharp["weights"]
    assert parts(ngdiff(), sharpness=0.0, gradient_buffers="cpu")["gradients"] == sharp["weights"]
    constant = parts(grad_diff(), sharpness=0.1, diagnose_every=0)
    assert constant["gradients"] == plain["gradients"], "a gradient per objective, with constant weights too"


def test_the_suggestion_gives_up_sharpness_last_and_is_never_refused(tmp_path):
    asked = Request(build_model().config, ngdiff(), arguments(tmp_path, check_every=0), device=DEVICES["l4"])

    def least(given_up: dict[str, float]) -> int:
        ways = [replace(asked, args=_changed(asked.args, way | given_up)) for way in _variants(asked)]
        return min(plan(way).peak for way in ways)

    with_it, without = least({}), least({"sharpness": 0.0})
    assert without < with_it
    for room, wanted in ((with_it, None), (without, 0.0)):
        small = replace(DEVICES["l4"], memory=int(room / HEADROOM) + 1)
        found = cheapest(replace(asked, device=small))
        assert found.changes
        assert found.changes.get("sharpness") == wanted
    latent = arguments(tmp_path, latent_radius=1.0, latent_layers="1", check_every=0)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        _changed(latent, {"gradient_checkpointing": True})
    device = replace(DEVICES["l4"], memory=int(1.5 * with_it / HEADROOM))
    while (found := cheapest(replace(asked, args=latent, device=device))) is None or not found.changes:
        device = replace(device, memory=int(device.memory * (0.9 if found else 1.25)))
    assert "gradient_checkpointing" not in found.changes


def test_what_a_run_refuses_is_not_planned(model_folder):
    for settings in ({"refresh_every": 4, "sharpness": 0.1}, {"refresh_every": 4, "latent_radius": 1.0}):
        with pytest.raises(UsageError, match="`refresh_every` must be 1 with `sharpness`"):
            plan_run(str(model_folder), "ngdiff", {"latent_layers": "1"} | settings)


def test_the_verb_answers_from_a_configuration_alone(model_folder, tmp_path, capsys):
    folder = tmp_path / "only-config"
    folder.mkdir()
    (folder / "config.json").write_text((model_folder / "config.json").read_text())
    words = ["plan", "--model", str(folder), "--gpus", "2", "--gpu", "l4", "--set", "fsdp=true"]
    with pytest.raises(SystemExit) as stop:
        app(words)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "peak of a rank" in text
    assert "It fits into 24.2" in text
    with pytest.raises(SystemExit):
        app([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["fits"]
    assert found["plan"]["peak"] == sum(found["plan"]["parts"].values())
    assert found["plan"]["notes"] == []
    with pytest.raises(SystemExit):
        app([*words, "--set", "refresh_every=4"])
    found = " ".join(capsys.readouterr().out.split())
    assert found.count("refresh_every=4 leaves no room for the sharpness that ngdiff has by itself") == 1


def test_the_verb_takes_the_method_of_a_configuration_file(model_folder, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text("method: npo\nbf16: false\n")

    def said(*words: str) -> str:
        app(["plan", "--model", str(model_folder), *words, "--json"], result_action="return_value")
        parts = json.loads(capsys.readouterr().out)["plan"]["parts"]
        return json.dumps({name: size for name, size in parts.items() if name != "process"})

    named = {name: said("--method", name, "--set", "bf16=false") for name in ("npo", "ngdiff")}
    assert said("--config", str(file)) == named["npo"] != named["ngdiff"]
    assert said("--config", str(file), "--method", "ngdiff") == named["ngdiff"]


@pytest.mark.parametrize("batch", [8, 32, 64])
def test_a_schedule_says_how_many_rows_of_a_set_are_joined(batch, tmp_path):
    """As many forget rows as batch and chunk hold, seven times as many to keep; planned by all of them."""
    rows = min(batch, 32)

    def asked(method: Method, size: int, **settings) -> Request:
        args = arguments(tmp_path, max_steps=10, per_device_train_batch_size=size, **settings)
        return Request(EIGHT, method, args, device=DEVICES["h100"])

    joined, even = asked(sugd(), batch), asked(replace(sugd(), schedule=None), 4 * rows)
    assert _passes(joined) == [8 * rows]
    assert _tokens_per_step(joined) == 8 * rows * joined.tokens
    assert plan(joined) == plan(even)
    sharp = asked(sugd(), batch, sharpness=0.1)
    assert _passes(sharp) == [rows, 7 * rows]
    seen = (2 + 7) / 8  # the forget rows twice
    assert plan(sharp).seconds == pytest.approx(seen * plan(joined).seconds)


def test_an_unknown_kind_is_answered_with_the_nearest(model_folder):
    with pytest.raises(UsageError, match=r"got 'h10'.*Did you mean h100\?"):
        plan_run(str(model_folder), "ngdiff", {}, gpu="h10")
    with pytest.raises(UsageError, match=r"cannot be planned.*`labels`"):
        plan_run(str(model_folder), "ngdiff", {}, tokens=10, labels=10)


def test_planning_leaves_no_weights_behind(tmp_path):
    """Meta and fake tensors only: an 8B model in fp32 would be 32 GB."""
    made: list[int] = []
    register = nn.Module.register_parameter

    def watch(module, name, parameter):
        if parameter is not None and not parameter.is_meta and type(parameter.data) is torch.Tensor:
            made.append(parameter.numel())
        register(module, name, parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", watch)
        sizes(EIGHT, arguments(tmp_path))
        saved(EIGHT, arguments(tmp_path), Shape(2, 16, 8), on_cpu=False)
    assert made == []


def test_living_counts_storages_while_anything_uses_them():
    with Living() as living:
        first = torch.ones(1000)
        living.restart()
        double = first * 2
        more = double + 1
        del double
        assert (living.bytes, living.height) == (8000, 12000)
        part = more[:10]
        del more
        assert living.bytes == 8000
        del part, first
    assert living.bytes == 0


def test_what_passes_is_held_by_the_heap_of_a_cpu_alone(tmp_path):
    """An adapter's inputs are widened to its precision for a moment; nothing of that kind happens without."""
    config, shape = build_model().config, Shape(4, 40, 20)
    plain, adapted = (
        saved(config, arguments(tmp_path, **settings), shape, on_cpu=True)
        for settings in ({}, {"lora_bf16": True, **LORA})
    )
    widest = 4 * 40 * config.intermediate_size * 4  # the input of the last matrix of a block, in fp32
    assert adapted.passing - plain.passing > config.num_hidden_layers * widest
    request = Request(config, METHODS["ngdiff"](), arguments(tmp_path, lora_bf16=True, **LORA))
    moment = "start of the last backward pass"
    counted = sizes(config, request.args)
    assert moments(request, counted)[moment]["passing tensors"] > 0
    assert moments(replace(request, device=DEVICES["l4"]), counted)[moment]["passing tensors"] == 0


def test_the_file_of_the_weights_is_mapped_while_they_are_read(tmp_path):
    config = build_model().config
    config.dtype = torch.bfloat16
    request = Request(config, METHODS["ngdiff"](), arguments(tmp_path))
    counted = sizes(config, request.args)
    assert moments(request, counted)["loading"]["file"] == 2 * counted.trained
    assert moments(replace(request, device=DEVICES["l4"]), counted)["loading"]["file"] == 0


def test_one_chunk_of_the_loss_is_wide(tmp_path):
    request = Request(EIGHT, METHODS["ngdiff"](), arguments(tmp_path), tokens=256, labels=128)
    moment = "start of the last backward pass"
    assert moments(request, sizes(EIGHT, request.args))[moment]["a chunk of the loss"] == 3 * 16 * 2**20
