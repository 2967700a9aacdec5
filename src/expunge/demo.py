"""The demonstration: a model learns fictitious people, forgets some of them, and is examined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge import api, output
from expunge.people import people, write_world
from expunge.progress import Reporter
from expunge.runs import Result


def run_demo(
    folder: Path, *, model: str, seed: int, control: bool, overwrite: bool, reporter: Reporter
) -> Result:
    """Generate a world, teach it, erase the forget group, and write the evidence.

    Args:
        folder: Takes `data/` beside `model/`, `record.json` and `report.html`.
        model: What to start from.
        seed: Of the world and of every random choice.
        control: Also train a model on the retain group alone; takes as long as the teaching.
        overwrite: Replace an earlier demo in the folder.
        reporter: Is told of every phase.

    Raises:
        UsageError: The folder or the model cannot be used.
    """
    output.claim(folder, overwrite=overwrite)
    data = write_world(people(seed), folder / "data")
    lesson: dict[str, Any] = {
        "template": "none",
        "seed": seed,
        "evaluate": False,
        "kind": "demo",
        "reporter": reporter,
    }
    taught = api.finetune(model, data=[data["forget"], data["retain"]], **lesson)
    never_saw = api.finetune(model, data=data["retain"], **lesson).model if control else None
    return api.unlearn(
        taught.model,
        taught.tokenizer,
        forget=data["forget"],
        retain=data["retain"],
        holdout=data["holdout"],
        control=never_saw,
        output=folder,
        claimed=True,
        save_strategy="no",
        template="none",
        seed=seed,
        kind="demo",
        reporter=reporter,
    )
