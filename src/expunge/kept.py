"""Evaluations kept by the hash of everything that decides them, to be taken over instead of repeated.

Two evaluations are the same when the weights, the rows as the model reads them, the data they came from, all
settings of the evaluation and the software are the same. Names of files and models decide nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from expunge.benchmarks.records import Evaluated
from expunge.collate import Encoded
from expunge.environment import environment, installed
from expunge.record import write_atomically
from expunge.records import Records

_EVALUATED = TypeAdapter(Evaluated)


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder of evaluations; files in it may go at any time, at the price of repeating an evaluation.

    Args:
        folder: Is made when the first evaluation is kept.
    """

    folder: Path

    def read(self, key: str) -> Evaluated | None:
        """The evaluation under a key; None if there is none, or none that can be read."""
        try:
            return _EVALUATED.validate_json((self.folder / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, key: str, evaluated: Evaluated) -> None:
        """Keep an evaluation; the file is whole or absent."""
        text = to_json(evaluated, inf_nan_mode="strings").decode()
        write_atomically(self.folder / f"{key}.json", text + "\n")


def key_of(
    weights: str,
    sets: Mapping[str, Records],
    rows: Mapping[str, list[Encoded]],
    settings: Mapping[str, Any],
) -> str:
    """Hash of everything that decides an evaluation.

    Args:
        weights: Hash of the model's weights.
        sets: What is measured on.
        rows: The same, as the tokenizer and the template write them.
        settings: Of the evaluation, its seed among them.
    """
    encoded = hashlib.sha256()
    for name, found in rows.items():
        encoded.update(json.dumps([name, [(list(r.input_ids), r.prompt_length) for r in found]]).encode())
    decides = {
        "weights": weights,
        "data": {name: [records.sha256, dict(records.fields)] for name, records in sets.items()},
        "rows": encoded.hexdigest(),
        "settings": dict(settings),
        "expunge": installed("expunge"),
        "environment": environment().model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
