"""What objectives see of a micro-batch: one forward pass, divided among the data sets that took part.

Knows a model and batches; knows no gradient, no weight and no Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from expunge.batching import concatenate
from expunge.errors import UsageError
from expunge.hidden import residual_stream
from expunge.logits import label_positions, select_logits
from expunge.objectives import GenericLabels, Objective, Reference, TokenLogits

Batch = Mapping[str, Tensor]

REFERENCE = "reference"
"""Key of the reference's log-probabilities of the labels in a batch; aligned with `labels`."""


def selection(name: str) -> str:
    """Key of a selector's choice in a batch, aligned with `labels`."""
    return f"selected/{name}"


def generic_labels(rule: GenericLabels) -> str:
    """Key of generic labels in a batch, aligned with `labels`."""
    return f"generic/{rule.alpha}/{rule.model}" if rule.model else "generic"


def token_logits(model: nn.Module, batch: Batch) -> TokenLogits:
    """One forward pass over one batch; logits at label positions only."""
    return observe(model, {"": batch})[""]


def observe(
    model: nn.Module,
    batches: Mapping[str, Batch],
    pad_id: int = 0,
    layers: tuple[int, ...] = (),
    references: Mapping[str, Reference] | None = None,
) -> dict[str, TokenLogits]:
    """One forward pass over several batches at once.

    Args:
        model: A causal language model, wrapped or not.
        batches: Data set -> batch.
        pad_id: For joining batches of different width.
        layers: Blocks after which the residual stream is wanted as well.
        references: Data set -> what the reference model says; where absent, what the batch carries of it.
    """
    joined = next(iter(batches.values())) if len(batches) == 1 else concatenate([*batches.values()], pad_id)
    places = label_positions(joined["labels"])
    if isinstance(model, FSDPModule):
        # a weight's cast kept from an earlier pass is older than this one: its gradient would come after its
        # block's are reduced, and count for the next objective
        torch.clear_autocast_cache()
    with residual_stream(model, layers, places) as hidden:
        logits = select_logits(model, joined["input_ids"], joined["attention_mask"], places)
    if hidden and isinstance(model, DistributedDataParallel):
        # DDP waits for every parameter that its outputs depend on, those behind the last layer read too
        hidden = {layer: stream + 0.0 * logits.sum() for layer, stream in hidden.items()}
    mine = [label_positions(batch["labels"]) for batch in batches.values()]
    sizes = [int(positions.sum()) for positions in mine]
    streams = {layer: stream.split(sizes) for layer, stream in hidden.items()}
    return {
        name: TokenLogits(
            logits=part,
            targets=at_labels(batch["labels"], positions),
            rows=positions.nonzero()[:, 0],
            hidden={layer: stream[i] for layer, stream in streams.items()},
            reference=(references or {}).get(name) or _carried(batch, positions),
        )
        for i, ((name, batch), positions, part) in enumerate(
            zip(batches.items(), mine, logits.split(sizes), strict=True)
        )
    }


def view(objective: Objective, seen: Mapping[str, TokenLogits], batches: Mapping[str, Batch]) -> TokenLogits:
    """What one objective sees: its own data set, its pairs, its selected tokens, their generic labels.

    Args:
        objective: The one that looks.
        seen: Data set -> observation.
        batches: The same data sets' batches, which carry the selectors' choices and generic labels.
    """
    tokens, needs, batch = seen[objective.source], objective.needs, batches[objective.source]
    if needs.selector is not None:
        chosen = at_labels(batch[selection(needs.selector)], label_positions(batch["labels"]))
        tokens = replace(tokens, selected=chosen)
    if needs.generic is not None:
        labels = at_labels(batch[generic_labels(needs.generic)], label_positions(batch["labels"]))
        tokens = replace(tokens, generic=labels)
    return tokens if needs.paired is None else replace(tokens, paired=seen[needs.paired])


def total(objective: Objective, tokens: TokenLogits) -> Tensor:
    """Sum of an objective's values over the tokens (or rows) that count.

    Raises:
        UsageError: It gave something else than one value per token (or row), such as their mean.
    """
    values = objective(tokens)
    _check_values(objective, tokens, values)
    if objective.unit == "token" and tokens.selected is not None and len(values) == len(tokens.targets):
        values = values[tokens.selected]
    return values.sum()


def _check_values(objective: Objective, tokens: TokenLogits, values: Any) -> None:
    """Refuse what is not one value per token or row: of all, or of those that are selected."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else None
    per_row = objective.unit == "row"
    allowed = len(tokens.row_lengths) if per_row else len(tokens.targets)
    if shape == (allowed,):
        return
    if tokens.selected is not None:
        rows = tokens.rows[tokens.selected]
        allowed = len(rows.unique_consecutive()) if per_row else len(rows)
        if shape == (allowed,):
            return
    found = type(values).__name__ if shape is None else f"a tensor of shape {list(shape)}"
    raise UsageError(
        f"objective {objective.name!r} ({_called(objective)}) must give one value per {objective.unit}, a "
        f"tensor of shape [{allowed}] here; it gave {found}. Return the values themselves: the engine takes "
        "their mean over the whole step."
    )


def _called(objective: Objective) -> str:
    """The class of an objective, and those of the objectives that it holds: "Ascent of Confidence"."""
    inner = getattr(objective, "of", None)
    held = f" of {_called(inner)}" if isinstance(inner, Objective) else ""
    return f"{type(objective).__qualname__}{held}"


def count(objective: Objective, batch: Batch) -> int:
    """How many values an objective is a mean over, in one batch: rows, label tokens, or selected ones."""
    labelled = batch["labels"][:, 1:] != -100
    if objective.unit == "row":
        return int(labelled.any(1).sum())
    if objective.needs.selector is not None:
        labelled = labelled & batch[selection(objective.needs.selector)][:, 1:]
    return int(labelled.sum())


def sources_of(objective: Objective) -> tuple[str, ...]:
    """Data sets that an objective reads: its own, and the one paired with it."""
    paired = objective.needs.paired
    return (objective.source,) if paired is None else (objective.source, paired)


def at_labels(values: Tensor, positions: Bool[Tensor, "b t"]) -> Tensor:
    """Entries of a tensor that is aligned with `labels`, in the order of the logits, [k]."""
    return values[:, 1:][positions[:, :-1]]


def _carried(batch: Batch, positions: Bool[Tensor, "b t"]) -> Reference | None:
    return Reference(at_labels(batch[REFERENCE], positions)) if REFERENCE in batch else None
