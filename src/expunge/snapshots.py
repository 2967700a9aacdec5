"""A model folder that loads at every moment, whatever kills the process that writes it.

`models.save_model` replaces a folder as a whole, with an instant between two renames in which there is none.
Here the folder stays; its index of weights is what changes, and a file can be replaced in one step.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.record import write_atomically

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Snapshots:
    """One state of a model at a time, in a folder that `from_pretrained` reads.

    Weights go into files of new names; then the index that names them is replaced; then the old files go.
    Until the index is replaced the folder holds the old state, from then on the new one.

    Args:
        folder: Created if need be. Weights of another model that it holds are removed by the first `write`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make this state the one that the folder holds."""
        tag = secrets.token_hex(4)
        fresh = self.folder / f".fresh-{tag}"
        fresh.mkdir(parents=True)
        try:
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
            weights, size = _weight_map(fresh)
            for name in sorted(set(weights.values())):
                os.replace(fresh / name, self.folder / _named(name, tag))
            for file in fresh.iterdir():
                if file.name != INDEX:
                    os.replace(file, self.folder / file.name)
            named = {key: _named(name, tag) for key, name in sorted(weights.items())}
            index = {"metadata": {"total_size": size}, "weight_map": named}
            (self.folder / SINGLE).unlink(missing_ok=True)  # it would be read instead of the index
            write_atomically(self.folder / INDEX, json.dumps(index, indent=1) + "\n")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self._tidy(set(named.values()))

    def _tidy(self, current: set[str]) -> None:
        """Remove weights that the index does not name, and what a killed process left."""
        for file in self.folder.glob("*.safetensors"):
            if file.name not in current:
                file.unlink(missing_ok=True)
        for left in (*self.folder.glob(".fresh-*"), *self.folder.glob(f".{INDEX}.*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _named(file: str, tag: str) -> str:
    return f"{file.removesuffix('.safetensors')}-{tag}.safetensors"


def _weight_map(folder: Path) -> tuple[dict[str, str], int]:
    """Tensor -> file as `save_pretrained` wrote them, and the bytes of all files."""
    if (folder / INDEX).is_file():
        weights: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    else:
        with safe_open(folder / SINGLE, framework="pt") as stream:
            weights = dict.fromkeys(stream.keys(), SINGLE)
    return weights, sum((folder / name).stat().st_size for name in set(weights.values()))
