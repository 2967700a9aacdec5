"""Any objective, on chosen tokens only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives.objective import Needs, Objective, Unit
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class Selected(Objective):
    """Another objective, as if the response consisted of the selected tokens alone.

    It gives one value per *selected* token (or, with `unit` "row", per row that has one), and its loss
    is the mean over those. Of a pair, the preferred response counts whole.

    Args:
        of: The objective; it must not have a selector of its own.
        selector: Name of the rule that selects, for example "entities".
    """

    of: Objective
    selector: str

    def __post_init__(self) -> None:
        if self.of.needs.selector is not None:
            raise ValueError(
                f"`of` must be an objective without a selector of its own; got {self.of.name} "
                f"with {self.of.needs.selector!r}."
            )

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.of.source

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        return self.of.unit

    @property
    def name(self) -> str:
        return f"{self.of.name}@{self.selector}"

    @property
    def needs(self) -> Needs:
        return replace(self.of.needs, selector=self.selector)

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " n"]:
        return self.of(kept(tokens, _given.selected(tokens)))


def kept(tokens: TokenLogits, mask: Bool[Tensor, " k"]) -> TokenLogits:
    """The positions where `mask` is true; of the paired rows, those of which a position is left."""
    rows, reference, other = tokens.rows[mask], tokens.reference, tokens.paired
    if reference is not None:
        reference = replace(
            reference,
            target_log_probs=reference.target_log_probs[mask],
            logits=None if reference.logits is None else reference.logits[mask],
            hidden=_rows_of(reference.hidden, mask),
        )
    return TokenLogits(
        logits=tokens.logits[mask],
        targets=tokens.targets[mask],
        rows=rows,
        hidden=_rows_of(tokens.hidden, mask),
        reference=reference,
        paired=None if other is None else kept(other, torch.isin(other.rows, rows)),
        counted=tokens.places[mask],
        generic=None if tokens.generic is None else tokens.generic[mask],
    )


def _rows_of(hidden: Mapping[int, Tensor], mask: Tensor) -> dict[int, Tensor]:
    return {layer: state[mask] for layer, state in hidden.items()}
