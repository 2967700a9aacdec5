"""Kill runs of the tiny model at random moments, resume them, and compare with the uninterrupted run.

    python benchmarks/faults/kill.py --runs 100 --output benchmarks/results/faults.json

Every run is a process of its own, killed by SIGKILL after a random part of the time that the whole run
takes (mostly counted from its first checkpoint) and resumed; some of those that are resumed are killed again.
At the end the weights must have the same hash, and every step the same losses and rate, as in the run that
nobody disturbed. The harness itself can be stopped and started again: it goes on where the results end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "src"))
sys.path.insert(0, str(HERE))

os.environ["OMP_NUM_THREADS"] = "1"

from job import KINDS, SETTINGS, arm, finish, prepare, run, start  # noqa: E402

import conftest  # noqa: E402, F401  (children inherit what stands here)
import expunge.api  # noqa: E402, F401
from expunge.record import read_record, write_atomically  # noqa: E402

LATE = 0.7
"""Share of kills whose clock starts once the run writes checkpoints, not with the process."""


@dataclass
class World:
    """Where runs happen."""

    folder: Path

    def start(self, kind: str, output: Path, order: str = "") -> int:
        """A run in a process of its own, resumed where there is something to resume."""

        def job() -> None:
            if order:
                arm(order)
            run(self.folder, output, kind, resume=output.is_dir())

        return start(self.folder / "log", job)

    def end(self, kind: str, output: Path) -> dict[str, Any]:
        """Let a run come to its end."""
        if not (output / "record.json").is_file():
            assert finish(self.start(kind, output)) == 0, (self.folder / "log").read_text()[-3000:]
        return outcome(output)


def outcome(output: Path) -> dict[str, Any]:
    """What must be equal: weights, every step, every reading, every look, and the reason for the end."""
    record = read_record(output)
    steps = [step.model_dump(exclude={"seconds"}) for step in record.history]
    told = [steps, [p.model_dump() for p in record.probes], [c.model_dump() for c in record.checks]]
    assert record.stop is not None
    return {
        "weights": record.models["after"].sha256,
        "history": hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        "stop": f"{record.stop.reason} at {record.stop.step}",
    }


def whole(world: World, kind: str) -> tuple[dict[str, Any], float]:
    """The uninterrupted run, and how long it takes."""
    begun = time.monotonic()
    return world.end(kind, world.folder / f"whole-{kind}"), time.monotonic() - begun


def kill_at_random(world: World, kind: str, seconds: float, rng: random.Random) -> dict[str, Any]:
    """One run, killed up to three times at random moments, resumed each time."""
    output, kills = world.folder / "killed", []
    for _ in range(3):
        child = world.start(kind, output)
        late, ended = rng.random() < LATE, None
        while late and not under_way(output) and (ended := finish(child, 0.01)) is None:
            pass
        if ended is not None or finish(child, rng.uniform(0.0, seconds)) is not None:
            break
        kills.append(where(output))
        os.kill(child, signal.SIGKILL)
        finish(child)
        if rng.random() < 0.5:
            break
    return _ended(world, kind, output, kills)


def kill_at(world: World, kind: str, order: str) -> dict[str, Any]:
    """One run, killed at a place in the code, and resumed."""
    output = world.folder / "killed"
    status = finish(world.start(kind, output, order))
    assert status == -signal.SIGKILL, f"{order}: {status}, {(world.folder / 'log').read_text()[-3000:]}"
    return _ended(world, kind, output, [f"{order}, {where(output)}"])


def _ended(world: World, kind: str, output: Path, kills: list[str]) -> dict[str, Any]:
    found = world.end(kind, output)
    shutil.rmtree(output)
    return {"kind": kind, "kills": kills, **found}


def under_way(output: Path) -> bool:
    """Whether the run writes, or has written, a checkpoint."""
    return any((output / "checkpoints").glob("*/*"))


def where(output: Path) -> str:
    """What a run was doing when it was killed, as far as its folder tells."""
    checkpoints = output / "checkpoints"
    if not output.is_dir():
        return "starting"
    if (checkpoints / ".saving").exists():
        return "inside a save"
    if any(output.glob(".model.*")):
        return "writing the model"
    if (output / "model").is_dir():
        return "after the model"
    return "between saves" if any(checkpoints.glob("checkpoint-*")) else "before the first save"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/faults.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas between")
    parser.add_argument(
        "--at", default="", help="places in the code, as gen/save:2, in place of random moments"
    )
    given = parser.parse_args()
    known = json.loads(given.output.read_text()) if given.output.is_file() else {"runs": []}
    runs, kinds = known["runs"], given.kinds.split(",")
    with tempfile.TemporaryDirectory(prefix="expunge-faults-") as place:
        world = World(Path(place))
        assert finish(start(world.folder / "log", lambda: prepare(world.folder))) == 0, place
        expected = {kind: whole(world, kind) for kind in kinds}
        orders = [order for order in given.at.split(",") if order]
        for number in range(len(runs), len(orders) or given.runs):
            rng = random.Random(f"{given.seed}-{number}")
            kind = kinds[number % len(kinds)]
            if orders:
                kind, _, order = orders[number].partition("/")
                killed = kill_at(world, kind, order)
            else:
                killed = kill_at_random(world, kind, expected[kind][1], rng)
            reference = expected[kind][0]
            killed["equal"] = all(killed[key] == reference[key] for key in reference)
            runs.append(killed)
            write_atomically(given.output, json.dumps(_result(runs, expected, given.seed), indent=1) + "\n")
            print(number + 1, kind, killed["kills"], "equal" if killed["equal"] else "DIFFERENT", flush=True)


def _result(runs: list[dict[str, Any]], expected: dict[str, Any], seed: int) -> dict[str, Any]:
    import torch
    import transformers

    moments = Counter(moment for run in runs for moment in run["kills"])
    return {
        "conditions": {
            "model": "tests/conftest.py, 60,000 parameters, attention dropout 0.1, fp32, CPU",
            "settings": SETTINGS,
            "kinds": KINDS,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": 1,
            "seed": seed,
        },
        "uninterrupted": {kind: found for kind, (found, _) in expected.items()},
        "killed_runs": sum(bool(run["kills"]) for run in runs),
        "kills": sum(moments.values()),
        "moments": dict(moments),
        "equal": sum(run["equal"] for run in runs),
        "different": sum(not run["equal"] for run in runs),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
