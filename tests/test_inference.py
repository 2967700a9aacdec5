"""What the passes leave of the model, and what precision they run in."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import build_model
from expunge.collate import Encoded
from expunge.generation import generate
from expunge.inference import cache_bytes, evaluating
from expunge.scoring import score
from naive import EOS, sharpen, varied_rows


@pytest.fixture
def sharp() -> LlamaForCausalLM:
    return sharpen(build_model(seed=3))


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    return varied_rows(tokenizer)


class Casts(TorchDispatchMode):
    """Counts how often each parameter is cast to bf16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.counts.update([self.names[args[0].data_ptr()]] if args[0].data_ptr() in self.names else [])
        return func(*args, **(kwargs or {}))


def test_the_model_is_left_as_it_was(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    sharp.train()
    sharp.model.layers[0].eval()
    sharp.model.embed_tokens.weight.requires_grad_(False)
    sharp.forward = sharp.forward
    modes = [module.training for module in sharp.modules()]
    gradients = [parameter.requires_grad for parameter in sharp.parameters()]
    forward, config = sharp.forward, sharp.generation_config
    for _ in range(2):
        with pytest.raises(RuntimeError, match="provoked"):
            score(sharp, encoded, pad_id=EOS, precision="bf16", progress=fail)
        score(sharp, encoded, pad_id=EOS, precision="bf16")
        with pytest.raises(RuntimeError, match="provoked"):
            generate(sharp, encoded, tokenizer=tokenizer, precision="bf16", progress=fail)
    assert [module.training for module in sharp.modules()] == modes
    assert [parameter.requires_grad for parameter in sharp.parameters()] == gradients
    assert sharp.forward is forward
    assert sharp.generation_config is config


def fail(_rows: int) -> None:
    raise RuntimeError("provoked")


def test_dropout_is_off(sharp: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    quiet = score(sharp, encoded, pad_id=EOS)
    for layer in sharp.model.layers:
        layer.self_attn.attention_dropout = 0.5
    sharp.train()
    for a, b in zip(quiet, score(sharp, encoded, pad_id=EOS), strict=True):
        np.testing.assert_array_equal(a.log_probs, b.log_probs)


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_casts_each_weight_once(sharp: LlamaForCausalLM, encoded: list[Encoded], frozen: bool) -> None:
    sharp.requires_grad_(not frozen)
    with Casts(sharp) as casts, evaluating(sharp, "bf16"):
        for row in encoded[:3]:
            sharp(input_ids=torch.tensor([row.input_ids]))
    assert len(casts.counts) > 10
    assert set(casts.counts.values()) == {1}


def test_bf16_scores_are_near_and_training_goes_on(sharp: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    exact, rough = score(sharp, encoded, pad_id=EOS), score(sharp, encoded, pad_id=EOS, precision="bf16")
    errors = np.concatenate([a.log_probs - b.log_probs for a, b in zip(exact, rough, strict=True)])
    assert 0 < np.abs(errors).max() < 0.5
    ids = torch.tensor([encoded[1].input_ids])
    with torch.autocast("cpu", torch.bfloat16):
        sharp(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in sharp.parameters())


def test_fp32_means_fp32_under_someone_elses_autocast(
    sharp: LlamaForCausalLM, encoded: list[Encoded]
) -> None:
    exact = score(sharp, encoded, pad_id=EOS)
    with torch.autocast("cpu", torch.bfloat16):
        inside = score(sharp, encoded, pad_id=EOS)
    for a, b in zip(exact, inside, strict=True):
        np.testing.assert_array_equal(a.log_probs, b.log_probs)


def test_cache_bytes_are_those_of_a_real_cache(model):
    ids = torch.zeros(3, 7, dtype=torch.long)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(model) == held / ids.numel()
