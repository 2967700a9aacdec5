"""What a weighting is, and what one that remembers promises on top.

How the engine calls a weighting, once per optimizer step:

1. `weights = weighting(gramian, losses)` for the objectives that take part, with losses that are already
   means over micro-batches and ranks. Where `needs_gramian` is false the call comes before the step's
   backward passes, perhaps once per micro-batch, with zeros for Gramian and losses: such a weighting may
   not look at them, and the call may not change what it remembers.
2. `weighting.observe(losses)` after the gradients were combined, exactly once, for `Stateful` weightings
   only, with the same losses of *all* objectives of the method. Not in a step in which some objective
   rests (repair), nor in one that was skipped because something was not finite.

A run begins with `reset()`; a checkpoint holds `state()`, a resumed run calls `restore(state)` in place of
`reset()`. Every rank sees the same Gramians and losses, so every rank holds the same state; nothing is
communicated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Weighting(Protocol):
    """One weight per objective, in float64."""

    @property
    def needs_gramian(self) -> bool:
        """Whether the weights depend on this step's gradients or losses.

        If not, one fused backward pass over all objectives is enough.
        """
        ...

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Weights from inner products of gradients and the values of the objectives."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A weighting that remembers, or counts for the log; see the module's docstring for who calls what."""

    def reset(self) -> None:
        """Forget everything: a run begins."""
        ...

    def observe(self, losses: Float[Tensor, " m"]) -> None:
        """Learn from a finished optimizer step: its losses, means over micro-batches and ranks."""
        ...

    def state(self) -> dict[str, float]:
        """What is remembered, as plain numbers: for the log and for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` gave.

        Raises:
            ValueError: Not the state of such a weighting.
        """
        ...


def check_state(state: Mapping[str, float], expected: set[str]) -> None:
    """Refuse a state of another weighting.

    Raises:
        ValueError: The names differ.
    """
    if set(state) != expected:
        raise ValueError(
            f"`state` must hold {sorted(expected)}; got {sorted(state)}. It was saved by another weighting."
        )
