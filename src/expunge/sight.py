"""One forward pass for a group of objectives: the reference's before it, an adversary inside it.

Knows models, batches and objectives; knows no gradient that trains, no weight and no Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.batching import concatenate
from expunge.collate import IGNORED
from expunge.defences.latent import Latent, Offsets, shifted
from expunge.derived import is_forget
from expunge.inference import bare
from expunge.objectives import Objective, TokenLogits
from expunge.observation import Batch, observe, sources_of, total, view
from expunge.references import LiveReference


@dataclass(frozen=True)
class Sight:
    """How objectives see a micro-batch.

    Args:
        pad_id: For joining batches of different width.
        latent: The adversary that objectives on forget records face; None: there is none.
    """

    pad_id: int
    latent: Latent | None = None

    def see(
        self,
        model: nn.Module,
        batches: Mapping[str, Batch],
        group: Sequence[Objective],
        counts: Mapping[str, float],
        reference: LiveReference | None = None,
    ) -> dict[str, TokenLogits]:
        """One forward pass over all that a group of objectives reads.

        Args:
            model: What to run, wrapped or not.
            batches: Data set -> batch.
            group: The objectives that look.
            counts: As for `step_share`; what the adversary raises is the sum of these shares.
            reference: Looks first, where an objective needs its whole distribution or its hidden states.

        Returns:
            Data set -> observation.
        """
        names = dict.fromkeys(name for objective in group for name in sources_of(objective))
        wanted = {name: batches[name] for name in names}
        layers = tuple(dict.fromkeys(layer for objective in group for layer in objective.needs.layers))
        live = [o for o in group if o.needs.reference in ("logits", "hidden")]
        references = {}
        if live and reference is not None:
            read = dict.fromkeys(name for objective in live for name in sources_of(objective))
            references = reference({name: batches[name] for name in read}, self.pad_id, layers)

        def look(at: nn.Module) -> dict[str, TokenLogits]:
            return observe(at, wanted, self.pad_id, layers, references)

        def loss(at: nn.Module) -> Tensor:
            seen = look(at)
            return torch.stack([step_share(o, seen, batches, counts) for o in group]).sum()

        forgets = all(is_forget(objective.source) for objective in group)
        with shifted(model, self._oppose(bare(model), wanted, loss) if forgets else {}):
            return look(model)

    def _oppose(
        self, model: nn.Module, batches: Mapping[str, Batch], loss: Callable[[nn.Module], Tensor]
    ) -> Offsets:
        """What the adversary adds to the residual stream at the prompts of a group that forgets."""
        if self.latent is None:
            return {}
        joined = concatenate([*batches.values()], self.pad_id)
        prompts = (joined["labels"] == IGNORED) & joined["attention_mask"].bool()
        return self.latent.worst(model, prompts, lambda: loss(model))


def step_share(
    objective: Objective,
    seen: Mapping[str, TokenLogits],
    batches: Mapping[str, Batch],
    counts: Mapping[str, float],
) -> Tensor:
    """A micro-batch's part of an objective's mean over the step; zero where nothing was selected.

    Args:
        objective: The one that looks.
        seen: Data set -> observation.
        batches: Data set -> batch.
        counts: Objective -> tokens or rows of the whole optimizer step that its loss is a mean over.
    """
    return total(objective, view(objective, seen, batches)) / (counts[objective.name] or 1.0)
