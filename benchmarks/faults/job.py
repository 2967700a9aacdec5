"""Runs of the tiny model, each in a process of its own, that are there to be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

KINDS: dict[str, dict[str, Any]] = {
    "stateful": {"method": "pdu"},
    "cached-reference": {"method": "npo"},
    "gen": {"method": "ngdiff-gen", "every": 3},
    "budget": {"method": "ngdiff", "every": 2, "rows": 6, "tolerance": 0.05},
}
"""A stateful weighting, cached references, a step size that is probed, and a last good state."""

SETTINGS: dict[str, Any] = {
    "bf16": False, "template": "none", "seed": 3, "max_steps": 40, "save_steps": 5, "learning_rate": 3e-4,
    "check_every": 4, "per_device_train_batch_size": 4, "evaluate": False,
}  # fmt: skip


def prepare(folder: Path) -> None:
    """The tiny model that has learned its records, with dropout so that random numbers matter."""
    import conftest
    import expunge

    rows = conftest.rows()
    for name, found in {"forget": rows[:6], "retain": rows[6:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    lesson = {"bf16": False, "template": "none", "seed": 0, "learning_rate": 1e-2, "max_steps": 120}
    taught = expunge.finetune(
        conftest.build_model(), conftest.build_tokenizer(), data=rows, evaluate=False, **lesson
    )
    taught.model.config.attention_dropout = 0.1
    taught.model.save_pretrained(folder / "start")
    taught.tokenizer.save_pretrained(folder / "start")


def run(folder: Path, output: Path, kind: str, *, resume: bool) -> None:
    import expunge

    expunge.unlearn(
        folder / "start",
        forget=folder / "forget.jsonl",
        retain=folder / "retain.jsonl",
        output=output,
        resume=resume,
        **SETTINGS | KINDS[kind],
    )


def start(log: Path, job: Callable[[], None]) -> int:
    """Run a job in a child process, which inherits the imports; its number.

    The parent has run nothing in torch, so no thread of it is missing in the child.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            job()
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(child: int, seconds: float | None = None) -> int | None:
    """The exit status of a child, minus the signal that killed it; None if it still runs after so long."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def arm(order: str) -> None:
    """Have this process killed at a place in the code: `save:2` inside the second save."""
    from expunge import checkpoints, models, monitor

    name, _, count = order.partition(":")
    places: dict[str, tuple[Any, str]] = {
        "save": (monitor.Monitor, "save"),  # the first of a checkpoint's files
        "sync": (checkpoints, "sync"),  # all of them are written, none has its name
        "publish": (checkpoints, "_rotate"),  # the new one has its name, the old one is still there
        "probe": (monitor, "row_losses"),
        "model": (models, "sync"),
    }
    assert name in places, f"a place must be one of {', '.join(places)}; got {order!r}"
    owner, function = places[name]
    setattr(owner, function, _deadly(getattr(owner, function), int(count or 1)))


def _deadly(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = 0

    def killed(*words: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*words, **named)

    return killed
