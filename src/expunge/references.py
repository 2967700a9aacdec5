"""The reference model: the model as it was when the run began.

Most losses read only its log-probabilities of the targets: these are computed once, in one scored pass, and
travel with the rows. Where a whole distribution or hidden states are needed the reference runs beside the
model, without a second model: with the adapter off where that is the start, else with the start's values of
what trains in place of the present ones. Nothing is copied or computed where no objective asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.inference import evaluating
from expunge.methods import Method
from expunge.objectives import Objective, Reference, TokenLogits
from expunge.observation import Batch, observe, sources_of


def cached_sources(method: Method) -> list[str]:
    """Data sets whose targets' log-probabilities under the reference an objective reads."""
    return _read_by(method, lambda objective: objective.needs.reference == "log_probs")


def live_sources(method: Method) -> list[str]:
    """Data sets on which an objective needs the reference's whole distribution or hidden states."""
    return _read_by(method, lambda objective: objective.needs.reference in ("logits", "hidden"))


class LiveReference:
    """Forward passes of the reference model, without a gradient, in evaluation mode.

    Memory: none where every trained parameter belongs to an adapter that does nothing yet (the adapter is
    switched off); else one frozen copy of the trained parameters (`extra_bytes`): all of them in full
    fine-tuning, the adapter's where it was trained before.

    Args:
        model: At the start of the run, unwrapped.
        precision: Of the forward pass; the training's, so that the difference to it starts at zero.
    """

    def __init__(self, model: nn.Module, precision: Literal["fp32", "bf16"]) -> None:
        self.model, self.precision = model, precision
        self.passes = 0
        self.start: list[Tensor] | None = None
        if not adapter_is_idle(model):
            self.start = [parameter.detach().clone() for parameter in self._trained()]

    @property
    def extra_bytes(self) -> int:
        """Memory of the frozen copy."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.start or [])

    def __call__(
        self, batches: Mapping[str, Batch], pad_id: int, layers: tuple[int, ...] = ()
    ) -> dict[str, Reference]:
        """What the reference says at the label positions of several batches, in one forward pass.

        Call it before the model's own forward pass: it swaps values that a graph may hold.
        """
        self.passes += 1
        torch.clear_autocast_cache()  # weights cast here must not serve the training pass, nor the reverse
        try:
            with evaluating(self.model, self.precision), self._as_it_began():
                seen = observe(self.model, batches, pad_id, layers)
                return {name: _reference(tokens) for name, tokens in seen.items()}
        finally:
            torch.clear_autocast_cache()

    @contextlib.contextmanager
    def _as_it_began(self) -> Iterator[None]:
        if self.start is None:
            adapted: Any = self.model
            with adapted.disable_adapter():
                yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange present values and those of the start: pointers, not bytes."""
        assert self.start is not None
        for i, parameter in enumerate(self._held):
            parameter.data, self.start[i] = self.start[i], parameter.data

    def _trained(self) -> list[nn.Parameter]:
        self._held = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return self._held


def adapter_is_idle(model: nn.Module) -> bool:
    """Whether all that trains is a LoRA adapter whose second factor is still zero: on is the same as off."""
    if not hasattr(model, "disable_adapter"):
        return False
    named = dict(model.named_parameters())
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    second = [p for name, p in named.items() if "lora_B" in name or "lora_embedding_B" in name]
    return (
        bool(second)
        and all("lora_" in name for name in trained)
        and not any(bool(factor.any()) for factor in second)
    )


def _reference(tokens: TokenLogits) -> Reference:
    return Reference(tokens.target_log_probs, tokens.logits, tokens.hidden)


def _read_by(method: Method, asks: Any) -> list[str]:
    chosen: list[Objective] = [objective for objective in method.objectives if asks(objective)]
    return list(dict.fromkeys(name for objective in chosen for name in sources_of(objective)))
