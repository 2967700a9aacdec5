"""The last state within the retain budget: one copy of what trains, kept for a run that ends outside it.

Knows parameters and files; when a state is good is the monitor's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge import ranks
from expunge.shards import shares

GOOD_FILE = "expunge_last_good.safetensors"


class LastGood:
    """A copy of parameters (of sharded ones: of this rank's shares), or none yet."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] | None = None

    def __bool__(self) -> bool:
        return self.tensors is not None

    def keep(self, parameters: Iterable[Tensor]) -> None:
        """Copy the parameters as they are, over the copy that there is."""
        present = shares(parameters)
        with torch.no_grad():
            if self.tensors is None:
                self.tensors = [own.clone() for own in present]
            else:
                torch._foreach_copy_(self.tensors, present)

    def put_back(self, parameters: Iterable[Tensor]) -> None:
        """Make the parameters what they were."""
        assert self.tensors is not None
        with torch.no_grad():
            torch._foreach_copy_(shares(parameters), self.tensors)

    def forget(self) -> None:
        """Free the copy."""
        self.tensors = None

    def save(self, folder: Path, *, sharded: bool) -> None:
        """Write the copy beside a checkpoint, whole or not at all; nothing where there is none.

        Args:
            folder: Of the checkpoint.
            sharded: Each rank has a file of its own.
        """
        if self.tensors is None:
            return
        file = _file(sharded)
        save_file({str(i): tensor for i, tensor in enumerate(self.tensors)}, folder / f".{file}")
        (folder / f".{file}").replace(folder / file)

    def load(self, folder: Path, parameters: Iterable[Tensor], *, sharded: bool) -> None:
        """Take the copy that a checkpoint has, if it has one, to where the parameters are."""
        if (file := folder / _file(sharded)).exists():
            stored = load_file(file)
            self.tensors = [stored[str(i)].to(own.device) for i, own in enumerate(shares(parameters))]


def _file(sharded: bool) -> str:
    return ranks.own_file(GOOD_FILE) if sharded else GOOD_FILE
