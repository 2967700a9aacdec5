"""A part of TOFU that two cores can teach and attack: the shortest rows of some of its authors."""

from __future__ import annotations

import json
from pathlib import Path

from lume_task2 import write

AUTHOR = 20
"""Rows of one author, as they follow each other in the splits."""

PARTS = {
    "forget": ("forget05", 0, 200, 60),
    "retain": ("retain95", 0, 1200, 160),
    "unseen": ("retain95", 2000, 2400, 40),
    "holdout": ("retain95", 2400, 2800, 40),
}
"""Set -> split, its rows from and to, and how many of these are taken."""


def prepare(data: Path, folder: Path) -> dict[str, Path]:
    """Write all four sets as JSON Lines; what is there already must be the same.

    Args:
        data: TOFU's folder, with forget05.jsonl and retain95.jsonl.
        folder: Where to.
    """
    paths = {}
    for name, (split, start, stop, count) in PARTS.items():
        lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[start:stop]
        found = [json.loads(line) for line in lines]
        rows = [
            {
                "prompt": row["question"],
                "response": row["answer"],
                "person": f"{split}-{(start + i) // AUTHOR}",
                "kind": "qa",
            }
            for i, row in enumerate(found)
        ]
        rows.sort(key=lambda row: len(row["prompt"]) + len(row["response"]))
        paths[name] = folder / f"{name}.jsonl"
        write(paths[name], "".join(json.dumps(row) + "\n" for row in rows[:count]))
    return paths
