"""What an objective asked for in `needs`, or one message that says that it is missing."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.objectives.tokens import Reference, TokenLogits


def reference(tokens: TokenLogits) -> Reference:
    """The reference model at the label positions."""
    if tokens.reference is None:
        raise ValueError("`tokens.reference` must be given to an objective that needs it; got None.")
    return tokens.reference


def reference_logits(tokens: TokenLogits) -> Float[Tensor, "k v"]:
    """Logits of the reference model, as it gave them."""
    logits = reference(tokens).logits
    if logits is None:
        raise ValueError(
            "`tokens.reference.logits` must be given to an objective on distributions; got None."
        )
    return logits


def reference_scores(tokens: TokenLogits) -> Float[Tensor, "k v"]:
    """Logits of the reference model, in the precision in which losses are computed."""
    return reference_logits(tokens).to(tokens.scores.dtype)


def paired(tokens: TokenLogits) -> TokenLogits:
    """The same rows with their other response."""
    if tokens.paired is None:
        raise ValueError("`tokens.paired` must be given to an objective on pairs; got None.")
    return tokens.paired


def selected(tokens: TokenLogits) -> Bool[Tensor, " k"]:
    """Which tokens the selector chose."""
    if tokens.selected is None:
        raise ValueError("`tokens.selected` must be given to an objective that needs a selector; got None.")
    return tokens.selected


def generic(tokens: TokenLogits) -> Int[Tensor, " k"]:
    """The generic label of each position."""
    if tokens.generic is None:
        raise ValueError("`tokens.generic` must be given to an objective on generic labels; got None.")
    return tokens.generic


def stream(hidden: Mapping[int, Tensor], layer: int) -> Float[Tensor, "k d"]:
    """The residual stream after `layer` blocks, in fp32 (fp64 stays fp64)."""
    if layer not in hidden:
        raise ValueError(f"`hidden` must hold layer {layer}; got layers {sorted(hidden)}.")
    state = hidden[layer]
    return state if state.element_size() > 4 else state.float()
