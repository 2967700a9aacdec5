"""Resident memory of one process over 2,000 optimizer steps of the tiny model, with rotating checkpoints.

    python benchmarks/faults/memory.py --steps 2000 --output benchmarks/results/memory.json

The slope is that of a straight line through the readings of the second half: by then caches are warm and the
allocator has its pools. What may grow is the history, which the record holds; its size is reported beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parents[1] / "tests")]

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

import conftest  # noqa: E402
from expunge import Unlearner, UnlearningArguments, methods  # noqa: E402
from expunge.record import write_atomically  # noqa: E402

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Readings(TrainerCallback):
    """Reads the resident memory every so many steps."""

    def __init__(self, every: int) -> None:
        self.every, self.found = every, []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self.found.append((state.global_step, resident()))


def measure(folder: Path, steps: int, every: int) -> dict[str, Any]:
    """Train so long, and put a line through the second half of the readings."""
    rows = conftest.rows()
    run = Unlearner(
        model=conftest.build_model(),
        args=UnlearningArguments(
            output_dir=str(folder), bf16=False, template="none", max_steps=steps, save_steps=100,
            learning_rate=1e-5, check_every=0,
        ),
        method=methods.ngdiff(tolerance=10.0, rows=10),
        processing_class=conftest.build_tokenizer(),
        forget_dataset=rows[:6],
        retain_dataset=rows[6:],
    )  # fmt: skip
    readings = Readings(every)
    run.add_callback(readings)
    run.train()
    late = np.array(readings.found[len(readings.found) // 2 :], dtype=float)
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    history = sum(len(step.model_dump_json()) for step in run.history)
    return {
        "steps": len(run.history),
        "resident_bytes": readings.found,
        "slope_bytes_per_step": round(slope, 1),
        "history_json_bytes_per_step": round(history / len(run.history), 1),
        "checkpoints_left": sorted(path.name for path in folder.glob("checkpoint-*")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="expunge-memory-") as place:
        found = measure(Path(place), given.steps, max(1, given.steps // 80))
    conditions = {
        "model": "tests/conftest.py, 60,000 parameters, fp32, CPU, 1 thread; ngdiff, 8 + 8 rows, a reading "
        "every 5 steps, a checkpoint every 100",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_atomically(given.output, json.dumps({"conditions": conditions} | found, indent=1) + "\n")
    print({key: value for key, value in found.items() if key != "resident_bytes"})


if __name__ == "__main__":
    main()
