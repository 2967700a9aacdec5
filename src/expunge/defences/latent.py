r"""Latent adversarial training: forget under the activations with which the answer would come back soonest.

Before the forget loss is taken, an adversary moves the residual stream at the prompt's tokens, within a
ball, so that the forget loss rises: so that what is to be forgotten comes back. What is forgotten under such
activations is out of reach of many prompts at once. Knows a model and batches; knows no objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from expunge.hidden import blocks, resolve_layers
from expunge.inference import language_model

Offsets = Mapping[int, Float[Tensor, "b t d"]]
"""Layer -> what is added to the residual stream there."""

_OVERSHOOT = 2.5
"""Steps are so long that the ball can be crossed and its surface searched (arXiv 1706.06083)."""


@dataclass(frozen=True)
class Latent:
    r"""An adversary on the residual stream, $\max_{\lVert\delta_t\rVert_2 \le \epsilon} L(\theta, \delta)$.

    Projected gradient ascent from zero: every step moves each token's δ by $2.5\,\epsilon / n$ along its own
    gradient direction and projects it onto the ball. One step ends at $\epsilon\, g / \lVert g \rVert$.

    Args:
        layers: Where it acts, from 0 (embeddings) to the number of blocks; negative from the end.
        radius: ε, length of the change at each token, in units of the residual stream; positive.
        steps: n, gradient steps, at least 1; each costs a forward and a backward pass of the forget rows.

    Reference:
        Sheshadri et al. (2024), arXiv 2407.15549, section 3 (targeted LAT).
    """

    layers: tuple[int, ...]
    radius: float
    steps: int = 6

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("`layers` must name at least one layer; got none. Name a middle one.")
        if not 0 < self.radius < math.inf:
            raise ValueError(f"`radius` must be positive; got {self.radius}. Leave it out for no adversary.")
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}. Give it one.")

    def worst(self, model: nn.Module, where: Bool[Tensor, "b t"], loss: Callable[[], Tensor]) -> Offsets:
        """Offsets within the ball under which the loss is high; parameters and gradients stay as they are.

        Args:
            model: A causal language model, not wrapped for several ranks.
            where: True at the tokens that the adversary may move.
            loss: Runs the model on these rows.
        """
        size = language_model(model).config.get_text_config().hidden_size
        start = torch.zeros(*where.shape, size, device=where.device)
        offsets = {layer: start.clone().requires_grad_() for layer in self.layers}
        for _ in range(self.steps):
            with shifted(model, offsets):
                value = loss()
            slopes = torch.autograd.grad(value, [*offsets.values()])
            moved = zip(offsets.items(), slopes, strict=True)
            offsets = {i: self._step(offset, slope, where) for (i, offset), slope in moved}
        return {layer: offset.detach() for layer, offset in offsets.items()}

    def _step(self, offset: Tensor, slope: Tensor, where: Tensor) -> Tensor:
        direction = nn.functional.normalize(slope, dim=-1, eps=torch.finfo(slope.dtype).tiny)
        moved = offset.detach() + _OVERSHOOT * self.radius / self.steps * direction
        length = moved.norm(dim=-1, keepdim=True)
        inside: Tensor = moved * (self.radius / length.clamp(min=self.radius)) * where[..., None]
        return inside.requires_grad_()


@contextmanager
def shifted(model: nn.Module, offsets: Offsets) -> Iterator[None]:
    """Forward passes inside run with the offsets added to the residual stream; none, and nothing changes."""
    with ExitStack() as hooks:
        stack = blocks(model) if offsets else nn.ModuleList()
        for layer, depth in zip(offsets, resolve_layers(tuple(offsets), len(stack)), strict=True):
            handle = _hook(stack, depth, offsets[layer])
            hooks.callback(handle.remove)
        yield


def _hook(stack: nn.ModuleList, depth: int, offset: Tensor) -> Any:
    def enters(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] + offset.to(args[0].dtype), *args[1:]), kwargs
        hidden = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": hidden + offset.to(hidden.dtype)}

    def leaves(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + offset.to(output[0].dtype), *output[1:])
        return output + offset.to(output.dtype)

    if depth == 0:
        return stack[0].register_forward_pre_hook(enters, with_kwargs=True)
    return stack[depth - 1].register_forward_hook(leaves)
