"""Texts that a model samples by itself, at temperature 1 and from the whole distribution.

Used for data that a run derives from its own model. Knows prompts as token ids; knows no record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase

from expunge.inference import evaluating, model_context

ROWS = 16
"""Prompts continued at once."""


def sample_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    ends: Sequence[int],
    tokens: int,
    seed: int,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[str]:
    """One sampled continuation per prompt. The caller's random state is left as it was.

    Args:
        model: A causal language model, wrapped or not.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        ends: Ids that end a text.
        tokens: New tokens at most; fewer where the model's context ends. Without room the text is empty.
        seed: The same seed, model and machine give the same texts.
        precision: Of the forward passes.
    """
    generator = next((module for module in model.modules() if isinstance(module, GenerationMixin)), None)
    if generator is None:
        raise ValueError(f"`model` must be or hold a model that can generate; got {type(model).__name__}.")
    context = model_context(model) or max(map(len, prompts), default=0) + tokens
    order = sorted((i for i, p in enumerate(prompts) if len(p) < context), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    with evaluating(model, precision) as device, _sampling(generator, tokenizer, ends), _seeded(seed, device):
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            room = min(tokens, context - max(len(prompts[i]) for i in chosen))
            found = _continue(generator, tokenizer, [prompts[i] for i in chosen], room, ends, device)
            for i, text in zip(chosen, found, strict=True):
                texts[i] = text
    return texts


def _continue(
    model: GenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    room: int,
    ends: Sequence[int],
    device: torch.device,
) -> list[str]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    out = cast(Any, model).generate(ids.to(device), attention_mask=mask.to(device), max_new_tokens=room)
    texts = []
    for row in out[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        texts.append(str(tokenizer.decode(row[:stop], skip_special_tokens=True)).strip())
    return texts


@contextlib.contextmanager
def _sampling(
    model: GenerationMixin, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Iterator[None]:
    """Plain sampling in place of the model's generation configuration, which `generate` would mix in."""
    before = model.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=pad, eos_token_id=sorted(ends)
    )
    try:
        yield
    finally:
        model.generation_config = before


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
