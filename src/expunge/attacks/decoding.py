"""Greedy answers to prompts that are given as embeddings, or that have been tampered with on the way.

Knows embeddings and a causal language model; knows no record. Prompts that are token ids go through
`expunge.generation`.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded, Template, end_token
from expunge.inference import generator, language_model


def embedding_of(model: nn.Module) -> nn.Module:
    """The module that turns token ids into what the first block gets."""
    found: nn.Module = language_model(model).get_input_embeddings()
    return found


def end_tokens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, template: Template = "auto"
) -> frozenset[int]:
    """What ends an answer: for the tokenizer, its chat template, and the model's generation configuration."""
    config = generator(model).generation_config
    stated = None if config is None else config.eos_token_id
    several = stated if isinstance(stated, list) else [stated]
    ends = (*several, tokenizer.eos_token_id, end_token(tokenizer, template))
    return frozenset(int(end) for end in ends if end is not None)


def left_padded(
    rows: Sequence[Encoded], device: torch.device
) -> tuple[Int[Tensor, "b p"], Int[Tensor, "b p"]]:
    """Ids of the prompts, ending in one column, and a mask that is 1 on real tokens."""
    width = max(row.prompt_length for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - row.prompt_length :] = torch.tensor(row.input_ids[: row.prompt_length])
        mask[i, width - row.prompt_length :] = 1
    return ids.to(device), mask.to(device)


def forward(model: nn.Module, mask: Int[Tensor, "b t"], length: int, **inputs: Any) -> Any:
    """One pass over the last `length` columns of a left-padded batch, positions counted from the mask.

    Models without positions of their own (ALiBi) take them from the mask themselves.
    """
    if "position_ids" in inspect.signature(language_model(model).forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
    return model(attention_mask=mask, **inputs)


@torch.no_grad()
def decode(
    model: nn.Module,
    embeds: Float[Tensor, "b p d"],
    mask: Int[Tensor, "b p"],
    budgets: Sequence[int],
    ends: Collection[int],
) -> list[tuple[int, ...]]:
    """Greedy continuations, each up to and including its first end token, or as long as its budget.

    Args:
        model: In evaluation mode.
        embeds: Prompts, padded on the left.
        mask: 1 on real positions.
        budgets: New tokens per row, at least 1.
        ends: Token ids that end an answer.
    """
    answers: list[list[int]] = [[] for _ in budgets]
    left, cache, inputs = list(budgets), None, {"inputs_embeds": embeds}
    while any(left):
        length = next(iter(inputs.values())).shape[1]
        out = forward(model, mask, length, past_key_values=cache, use_cache=True, **inputs)
        cache, new = out.past_key_values, out.logits[:, -1].argmax(-1)
        for i, token in enumerate(new.tolist()):
            if left[i]:
                answers[i].append(token)
                left[i] = 0 if token in ends else left[i] - 1
        inputs = {"input_ids": new[:, None]}
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return [tuple(answer) for answer in answers]
