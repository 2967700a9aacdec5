"""Texts that a model samples by itself from the whole distribution, and those that a beam search finds.

Used for data that a run derives from its own model, and by attacks. Knows prompts as token ids, no record.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase

from expunge.inference import evaluating, model_context

ROWS = 16
"""Prompts continued at once."""

_STOPS = re.compile(r"""[.!?…]["'”’)\]]*(?=\s|$)|[。！？]""")
"""Where a sentence ends."""

_UNCHANGED: Mapping[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Sampling from the model's own distribution."""


def sample_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    ends: Sequence[int],
    tokens: int,
    seed: int,
    precision: Literal["fp32", "bf16"] = "fp32",
    temperature: float = 1.0,
    rows: int = ROWS,
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
        temperature: Logits are divided by it; positive.
        rows: Prompts continued at once.
    """
    plain = {**_UNCHANGED, "temperature": temperature}
    with evaluating(model, precision) as device, _seeded(seed, device):
        return [texts[0] for texts in _texts(model, tokenizer, prompts, ends, tokens, rows, plain)]


def sample_whole_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    ends: Sequence[int],
    tokens: int,
    seed: int,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[str]:
    """As `sample_texts`, for texts to train on: what the limit ended is cut after its last full sentence.

    Whoever trained on the rest would teach the model to stop in the middle of a sentence. A text without a
    full sentence stays as it is.
    """
    with evaluating(model, precision) as device, _seeded(seed, device):
        found = _texts(model, tokenizer, prompts, ends, tokens, ROWS, _UNCHANGED, whole=True)
        return [texts[0] for texts in found]


def beam_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    ends: Sequence[int],
    tokens: int,
    beams: int,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[list[str]]:
    """The likeliest continuations that a beam search finds, the best first: `beams` per prompt.

    Args:
        model: A causal language model, wrapped or not.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        ends: Ids that end a text.
        tokens: New tokens at most; fewer where the model's context ends. Without room there is no text.
        beams: Width of the search, at least 2.
        precision: Of the forward passes.
    """
    search = {"do_sample": False, "num_beams": beams, "num_return_sequences": beams}
    with evaluating(model, precision):
        return _texts(model, tokenizer, prompts, ends, tokens, max(1, 4 * ROWS // beams), search)


def _texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    ends: Sequence[int],
    tokens: int,
    rows: int,
    options: Mapping[str, Any],
    *,
    whole: bool = False,
) -> list[list[str]]:
    """Texts of every prompt, in batches of like length; one empty text where there is no room."""
    generator = next((module for module in model.modules() if isinstance(module, GenerationMixin)), None)
    if generator is None:
        raise ValueError(f"`model` must be or hold a model that can generate; got {type(model).__name__}.")
    context = model_context(model) or max(map(len, prompts), default=0) + tokens
    order = sorted((i for i, p in enumerate(prompts) if len(p) < context), key=lambda i: len(prompts[i]))
    texts = [[""] for _ in prompts]
    with configured(generator, tokenizer, ends, options):
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            room = min(tokens, context - max(len(prompts[i]) for i in chosen))
            found = _continue(generator, tokenizer, [prompts[i] for i in chosen], room, ends, whole=whole)
            each = len(found) // len(chosen)
            for n, i in enumerate(chosen):
                texts[i] = found[n * each : (n + 1) * each]
    return texts


def _continue(
    model: GenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    room: int,
    ends: Sequence[int],
    *,
    whole: bool,
) -> list[str]:
    ids, mask = left_padded(prompts, next(cast(nn.Module, model).parameters()).device)
    out = cast(Any, model).generate(ids, attention_mask=mask, max_new_tokens=room)
    texts = []
    for row in out[:, ids.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        text = str(tokenizer.decode(row[:stop], skip_special_tokens=True)).strip()
        texts.append(full_sentences(text) if whole and stop == len(row) else text)
    return texts


def full_sentences(text: str) -> str:
    """A text up to its last full stop; as it is where there is none.

    Example:
        >>> full_sentences("It rained. The river 3.5 m high ro")
        'It rained.'
    """
    stops = list(_STOPS.finditer(text))
    return text[: stops[-1].end()] if stops else text


def left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Ids and attention mask of prompts that end together."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@contextlib.contextmanager
def configured(
    model: GenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    options: Mapping[str, Any],
) -> Iterator[None]:
    """These options in place of the model's generation configuration, which `generate` would mix in."""
    before = model.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=sorted(ends), **options)
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
