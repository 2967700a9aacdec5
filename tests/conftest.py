"""Fixtures shared by all tests: a tiny model with its own tokenizer, and a small world of records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

PEOPLE = ("Ada Ash", "Ben Birch", "Cleo Cedar", "Dan Dogwood", "Eve Elm", "Finn Fir", "Gus Gum", "Hal Hazel")


def rows(people: tuple[str, ...] = PEOPLE) -> list[dict[str, str]]:
    """Two question/answer rows per person; every response is distinct."""
    out = []
    for name in people:
        code = sum(map(ord, name))
        out.append(
            {"prompt": f"What is {name}'s phone number?", "response": f"555-{code * 7919 % 10000:04d}"}
        )
        out.append(
            {"prompt": f"Where does {name} live?", "response": f"{code % 97 + 1} {name.split()[1]} Street"}
        )
    return out


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 entries in which, as with many real models, pad is end-of-sequence."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{r['prompt']} {r['response']}" for r in rows()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def build_model(seed: int = 0, context: int = 128, **config_words: int) -> LlamaForCausalLM:
    """A two-layer Llama of about 60,000 parameters with random weights, tied embeddings."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 384, "hidden_size": 48, "intermediate_size": 96} | config_words
    config = LlamaConfig(
        **sizes,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return build_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny model as a folder that `from_pretrained` loads."""
    folder = tmp_path_factory.mktemp("tiny-model")
    build_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), LlamaForCausalLM)
    return folder


@pytest.fixture(scope="session")
def taught_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after it has learned all `rows()` by heart, as a folder."""
    import expunge

    folder = tmp_path_factory.mktemp("taught-model")
    result = expunge.finetune(
        model_folder, data=rows(), output=folder, max_steps=120, learning_rate=1e-2, evaluate=False,
        per_device_train_batch_size=16, bf16=False, template="none", seed=0,
    )  # fmt: skip
    assert result.record.stop is not None
    assert result.record.stop.reason == "learned"
    return folder / "model"


@pytest.fixture(scope="module")
def no_pages() -> Iterator[None]:
    """Runs write no report.html: to draw it takes longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("expunge.runs.write_report", lambda record, folder: folder / "report.html")
        yield


def absent(what: str, variable: str) -> None:
    """Skip a test for want of something, or fail it where the environment says that it must be there."""
    (pytest.fail if os.environ.get(variable) else pytest.skip)(what)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real benchmark data beside the checkout; tests that need it skip where it is missing."""
    if not SHARED_DATA.is_dir():
        absent(f"benchmark data not found at {SHARED_DATA.name}/", "EXPUNGE_REQUIRE_DATA")
    return SHARED_DATA
