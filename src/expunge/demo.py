"""The demonstration: a model learns fictitious people, forgets some of them, and is examined."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from expunge import api, output
from expunge.locks import exclusive
from expunge.people import people, write_world
from expunge.progress import Reporter
from expunge.runs import Result

LESSON: dict[str, Any] = {
    "template": "none",
    "evaluate": False,
    "kind": "demo",
    "learning_rate": 5e-4,
    "warmup_steps": 5,
    "per_device_train_batch_size": 8,
    "max_steps": 154,
}
"""How the people are taught: fast, since it is not what is on show. Exact answers on seeds 0, 1, 2 after
these eleven passes in small steps: 100, 31 and 81 %."""


@exclusive
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
        KeyboardInterrupt: Ctrl-C during the teaching; there is nothing to resume yet.
    """
    output.claim(folder, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="expunge-demo-") as world:
        draft = write_world(people(seed), Path(world))
        lesson: dict[str, Any] = LESSON | {"seed": seed, "reporter": reporter}
        taught = _teach(model, [draft["forget"], draft["retain"]], lesson)
        never_saw = _teach(model, [draft["retain"]], lesson).model if control else None
    output.clear(folder)
    data = write_world(people(seed), folder / "data")
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
        source=f"{model}, taught the people of seed {seed}",
        notes=_notes(taught, control=control),
        reporter=reporter,
    )


def _teach(model: str, data: list[Path], lesson: dict[str, Any]) -> Result:
    taught = api.finetune(model, data=data, **lesson)
    if taught.record.stop and taught.record.stop.reason == "interrupted":
        raise KeyboardInterrupt
    return taught


def _notes(taught: Result, *, control: bool) -> tuple[str, ...]:
    record = taught.record
    seconds, steps = record.timings["train"], len(record.history)
    return (
        "A demonstration: all people are fictitious. The model was first taught the forget and the retain "
        f"group ({steps} steps, {seconds:.0f} s); it never saw the holdout group.",
        *(("The control model was taught the retain group only.",) if control else ()),
    )
