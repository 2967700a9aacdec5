"""The residual stream, read at chosen places and changed on the way; every hook is gone afterwards.

Layers count from 0 (what enters the first block) to the number of blocks (what leaves the last one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.collate import Encoded, collate
from expunge.hidden import blocks, residual_stream
from expunge.inference import Precision, evaluating, runs
from expunge.logits import label_positions, output_embedding

Change = Callable[[Tensor], Tensor]
"""A residual stream [b, t, d] -> the one to go on with."""

_BATCH_TOKENS = 2048


def depth(model: nn.Module) -> int:
    """The number of blocks."""
    return len(blocks(model))


@contextmanager
def changed(model: nn.Module, changes: dict[int, Change]) -> Iterator[None]:
    """Forward passes inside go on with the changed stream behind the named layers.

    Args:
        model: A causal language model, wrapped or not.
        changes: Layer -> what is done to the stream there.
    """
    stack = blocks(model)

    def enters(change: Change) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        return hook

    def leaves(change: Change) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return hook

    with ExitStack() as hooks:
        for layer, change in changes.items():
            handle = (
                stack[0].register_forward_pre_hook(enters(change), with_kwargs=True)
                if layer == 0
                else stack[layer - 1].register_forward_hook(leaves(change))
            )
            hooks.callback(handle.remove)
        yield


def response_states(
    model: nn.Module, rows: Sequence[Encoded], layers: Sequence[int], precision: Precision
) -> list[Float[Tensor, "l t d"]]:
    """Per row the stream at the position before each response token (and before the end), at each layer.

    Args:
        model: A causal language model, wrapped or not.
        rows: Read whole, responses included.
        layers: Which; in this order in the result.
        precision: Of the forward passes; the result is fp32, on the CPU.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    states: dict[int, Tensor] = {}
    with evaluating(model, precision) as device:
        for batch in runs(order, [(len(row.input_ids),) for row in rows], _BATCH_TOKENS):
            some = {name: value.to(device) for name, value in collate([rows[i] for i in batch], 0).items()}
            positions = label_positions(some.pop("labels"))
            with residual_stream(model, tuple(layers), positions) as caught:
                model(**some, use_cache=False, logits_to_keep=1)
            stacked = torch.stack([caught[layer].float().cpu() for layer in layers])
            states.update(zip(batch, stacked.split(positions.sum(1).tolist(), dim=1), strict=True))
    return [states[i] for i in range(len(rows))]


def prompt_states(
    model: nn.Module, rows: Sequence[Encoded], layers: Sequence[int], precision: Precision
) -> Float[Tensor, "l n d"]:
    """The stream at the last position of each prompt, from which the first response token is said."""
    states = response_states(model, rows, layers, precision)
    return torch.stack([row[:, 0] for row in states], dim=1)


def final_norm(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What stands between the last block and the output embedding, found by watching one pass.

    The module, not in a block, that is given the very tensor that the last block gave; where there is none,
    nothing stands between.
    """
    stack = blocks(model)
    last: list[int] = []
    found: list[nn.Module] = []

    def leaves(_module: nn.Module, _args: Any, output: Any) -> None:
        last.append(id(output[0] if isinstance(output, tuple) else output))

    def enters(module: nn.Module, args: tuple[Any, ...]) -> None:
        if last and args and id(args[0]) == last[-1]:
            found.append(module)

    head = output_embedding(model)
    outside = [m for m in model.modules() if m is not head and not any(True for _ in m.children())]
    inside = {id(part) for block in stack for part in block.modules()}
    with ExitStack() as hooks, evaluating(model, "fp32") as device:
        hooks.callback(stack[-1].register_forward_hook(leaves).remove)
        for module in outside:
            if id(module) not in inside:
                hooks.callback(module.register_forward_pre_hook(enters).remove)
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    return found[0] if found else nn.Identity()
