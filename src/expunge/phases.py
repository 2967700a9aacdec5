"""Trainings from one start, one after the other, and the model merged from what they changed.

Knows parameters and a rule; knows no data, no optimizer and no Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.merging import Merge, Sum

PHASES_FILE = "expunge_phases.safetensors"


class Phases:
    r"""Which training of a merged method is under way, what earlier ones changed, and the merge.

    A LoRA adapter changes a weight by a product $s B A$ that is zero at the start. Its factors are merged
    each by itself, as they stand, and the coefficient goes to $B$ alone: $\Delta W = c\, s\, B A$ is then
    exact for one training.

    Memory beyond that of training: one copy of the trained parameters for the start (the reference's, where
    there is one) and one for each training that has ended; while merging, one more.

    Args:
        merge: The rule.
        named: Trained parameters by name, as they are at the start of the run.

    Raises:
        ValueError: There is an adapter that changes the model already, or whose change is not a product.
    """

    def __init__(self, merge: Merge, named: Mapping[str, nn.Parameter]) -> None:
        _check_adapter(merge, named)
        self.merge = merge
        self.parameters = list(named.values())
        self.first = [_is_first(name) for name in named]
        self.start: list[Tensor] = []
        self.changes: list[list[Tensor]] = []
        self.coefficient: float | None = None

    @property
    def count(self) -> int:
        """How many trainings the method has."""
        return 1 + len(self.merge.further)

    def begin(self, start: list[Tensor] | None = None) -> None:
        """Remember the parameters as they are, before a checkpoint is loaded.

        Args:
            start: Copies of them that somebody keeps already; never written to here.
        """
        self.start = start if start is not None else [p.detach().clone() for p in self.parameters]

    def length(self, limit: int) -> int:
        """Optimizer steps of each training but the last, which takes the remainder too."""
        return limit // self.count

    def ended(self, step: int, limit: int) -> bool:
        """Whether a training that another follows ends after so many steps of at most `limit`."""
        done = len(self.changes) + 1
        return done < self.count and step >= done * self.length(limit)

    def advance(self) -> None:
        """Keep what the present training changed, and return to the start."""
        self.changes.append(self._changes())
        self.rewind()

    def rewind(self) -> None:
        """Put the start back into the parameters."""
        with torch.no_grad():
            torch._foreach_copy_([*self.parameters], self.start)

    def place(self, coefficient: float) -> None:
        """Put the merged model into the parameters; may be called again with another coefficient.

        Args:
            coefficient: Of the combined change.
        """
        if self.coefficient is None:
            every = [*self.changes, self._changes()]
            combined = [self.merge.combine(torch.stack(found)) for found in zip(*every, strict=True)]
            self.changes = [combined]
        self.coefficient = coefficient
        with torch.no_grad():
            for parameter, start, change, first in zip(
                self.parameters, self.start, self.changes[0], self.first, strict=True
            ):
                parameter.copy_(change if first else start + coefficient * change)

    def save(self, folder: Path) -> None:
        """Write what finished trainings changed beside a checkpoint, whole or not at all."""
        if self.changes:
            flat = {f"{i}.{j}": t for i, change in enumerate(self.changes) for j, t in enumerate(change)}
            save_file(flat, folder / f".{PHASES_FILE}")
            (folder / f".{PHASES_FILE}").replace(folder / PHASES_FILE)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        stored = load_file(folder / PHASES_FILE) if (folder / PHASES_FILE).is_file() else {}
        count = len({key.partition(".")[0] for key in stored})
        self.changes = [
            [stored[f"{i}.{j}"].to(p.device) for j, p in enumerate(self.parameters)] for i in range(count)
        ]

    def _changes(self) -> list[Tensor]:
        """What the present training has changed so far; the first factors of an adapter as they stand."""
        return [
            parameter.detach().clone() if first else parameter.detach() - start
            for parameter, start, first in zip(self.parameters, self.start, self.first, strict=True)
        ]


def _is_first(name: str) -> bool:
    return "lora_A" in name


def _is_second(name: str) -> bool:
    return "lora_B" in name


def _check_adapter(merge: Merge, named: Mapping[str, nn.Parameter]) -> None:
    if not any("lora_" in name for name in named):
        return
    if other := [name for name in named if not (_is_first(name) or _is_second(name))]:
        raise ValueError(
            f"a merged method must train plain weights, or factors of plain LoRA on matrices; "
            f"got {other[0]}. Set lora_dora=false, or train the weights (lora_rank=0)."
        )
    if any(bool(parameter.any()) for name, parameter in named.items() if _is_second(name)):
        raise ValueError(
            "a merged method must start from an adapter that changes nothing yet; got a trained one. "
            "Merge it into the model first."
        )
    if isinstance(merge.combine, Sum) and merge.further:
        raise ValueError(
            f"`combine` must not be Sum for {1 + len(merge.further)} trainings of an adapter (a sum of "
            "factors is no sum of products). Train the weights (lora_rank=0), or merge by TIES."
        )
