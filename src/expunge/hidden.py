"""The residual stream of a model after chosen blocks, caught by hooks during an ordinary forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a (possibly wrapped) transformers model, first to last.

    Raises:
        ValueError: No list of modules is as long as the configuration's number of layers.
    """
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    count = None if inner is None else inner.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = [module for module in lists if len(module) == count]
    if not found:
        raise ValueError(
            f"`model` must hold its {count} blocks in one nn.ModuleList; "
            f"found lists of {sorted(map(len, lists)) or 'no length'}."
        )
    return found[0]


def resolve_layers(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Layers counted from 0 (embeddings) to `count` (after the last block); negative ones from the end.

    Raises:
        ValueError: A layer is out of range.
    """
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise ValueError(
                f"`layers` must lie between {-count - 1} and {count} for a model of {count} blocks; "
                f"got {layer}."
            )
    return tuple(layer % (count + 1) for layer in layers)


@contextmanager
def residual_stream(
    model: nn.Module, layers: tuple[int, ...], positions: Bool[Tensor, "b t"]
) -> Iterator[dict[int, Tensor]]:
    """Forward passes inside leave the residual stream at the chosen positions, gradient included.

    Args:
        model: A causal language model, wrapped or not.
        layers: 0 is what enters the first block, i what leaves block i; negative counts from the end.
        positions: True where it is wanted.

    Yields:
        Layer, as it was asked for -> [k, d] in row-major order of `positions`; complete at the end.
    """
    caught: dict[int, Tensor] = {}
    if not layers:
        yield caught
        return
    stack = blocks(model)

    def enters(asked: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught[asked] = args[0] if args else kwargs["hidden_states"]

        return hook

    def leaves(asked: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            caught[asked] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [
        stack[0].register_forward_pre_hook(enters(asked), with_kwargs=True)
        if depth == 0
        else stack[depth - 1].register_forward_hook(leaves(asked))
        for asked, depth in zip(layers, resolve_layers(layers, len(stack)), strict=True)
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
        for asked, stream in caught.items():  # here, as a block under activation checkpointing runs twice
            caught[asked] = stream[positions]
