"""A TOFU of a few questions, in the layout and with the fields of the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES = {"forget": 6, "retain": 5, "real_authors": 4, "world_facts": 3, "holdout": 6}


def question(set_name: str, index: int) -> dict[str, Any]:
    who = f"{set_name[0]}{index}"
    return {"question": f"Where is {who}?", "answer": f"{who} is at {index * 7 % 10} Elm"}


def perturbed(set_name: str, index: int) -> dict[str, Any]:
    row = question(set_name, index)
    if set_name in ("real_authors", "world_facts"):
        return row | {"perturbed_answer": [f"{k} Fir" for k in range(3)]}
    who = f"{set_name[0]}{index}"
    wrong = [f"You find {who} at {k + index} Oak" for k in range(5)]
    return row | {"paraphrased_answer": f"You find {who} at {index * 7 % 10} Elm", "perturbed_answer": wrong}


def write(folder: Path, forget: str = "forget01") -> Path:
    """Files of one forget set; the retain and forget sets share their first question."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{name}_perturbed": [perturbed(name, i) for i in range(SIZES[name])] for name in list(SIZES)[1:4]
    }
    files[f"{forget}_perturbed"] = [perturbed("forget", i) for i in range(SIZES["forget"])]
    files[forget] = [question("forget", i) for i in range(SIZES["forget"])]
    files[{"forget01": "retain99"}[forget]] = [question("retain", i) for i in range(SIZES["retain"])]
    files[forget.replace("forget", "holdout")] = [question("holdout", i) for i in range(SIZES["holdout"])]
    files["retain_perturbed"][0]["question"] = files[f"{forget}_perturbed"][0]["question"]
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder
