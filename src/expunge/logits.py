"""Logits only where a label needs them.

The vocabulary projection is the widest matrix of a small model; on prompt and padding its output
is thrown away. A hook on the output embedding drops those positions before the product, so that
the model's own `forward` (and whatever wraps it: autocast, DDP, FSDP) is still what runs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel


def output_embedding(model: nn.Module) -> nn.Module:
    """The vocabulary projection of a (possibly wrapped) transformers model.

    Raises:
        ValueError: No wrapped module is a transformers model with an output embedding.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            head: nn.Module | None = module.get_output_embeddings()
            if head is not None:
                return head
    raise ValueError("`model` must be a causal language model with an output embedding. Found none.")


def select_logits(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    positions: Bool[Tensor, "b t"],
) -> Float[Tensor, "k v"]:
    """Next-token logits at the k chosen positions, in row-major order of `positions`.

    Args:
        model: A causal language model, wrapped or not.
        input_ids: Token ids.
        attention_mask: 1 on real tokens.
        positions: True where the distribution over the *next* token is wanted.
    """

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][positions], *args[1:])

    handle = output_embedding(model).register_forward_pre_hook(keep)
    try:
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    finally:
        handle.remove()
    return logits


def select_hidden(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    positions: Bool[Tensor, "b t"],
    cache: Cache | None = None,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "1 v"]]:
    """What the vocabulary projection gets at the k chosen positions, and the model's logits at the first one.

    Args:
        model: A causal language model, wrapped or not.
        input_ids: Token ids.
        attention_mask: 1 on real tokens.
        positions: True where the distribution over the *next* token is wanted, at least once.
        cache: Takes the keys and values of all positions.
    """
    caught: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(args[0][positions])
        return (caught[0][:1], *args[1:])

    handle = output_embedding(model).register_forward_pre_hook(keep)
    try:
        logits: Tensor = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=cache is not None,
            past_key_values=cache,
        ).logits
    finally:
        handle.remove()
    return caught[0], logits


def label_positions(labels: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """Positions whose next token is a label (labels use -100 for "no label")."""
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != -100
    return positions
