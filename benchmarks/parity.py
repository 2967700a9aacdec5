"""How far two processes end from one: every recipe of the library, replicated (DDP) and sharded (FSDP2).

    python benchmarks/parity.py --output benchmarks/results/parity.json [--markdown TABLE.md]

The tiny model of the tests, fp32, AdamW, 20 steps, two gloo processes here, the same rows per step
(`tests/parity_run.py`). The distance is the largest relative one of a parameter; beside it how far the run
itself went. What is refused under a way stands there with its reason. Merged recipes train in phases of their
own and are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS.parent / "src"), str(TESTS)]

from conftest import build_model  # noqa: E402
from expunge.environment import environment  # noqa: E402
from expunge.methods import METHODS  # noqa: E402
from parity_run import Case, found, train  # noqa: E402
from test_parity import apart  # noqa: E402


def launch(folder: Path, names: list[str]) -> None:
    """All recipes, both ways, in one launch of two processes."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
    ]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(TESTS / "parity_run.py"), str(folder), *names], env=paths, check=True)


def compared(folder: Path, way: str, label: str, alone: dict[str, Any]) -> dict[str, Any]:
    """One recipe under one way, beside one process."""
    refused = folder / f"{way}-{label}.refused"
    if refused.exists():
        return {"refused": refused.read_text()}
    first, second = (torch.load(folder / f"{way}-{label}-{rank}.pt", weights_only=False) for rank in (0, 1))
    pairs = zip(first["parameters"].values(), second["parameters"].values(), strict=True)
    return {
        "apart": apart(first["parameters"], alone["parameters"]),
        "ranks_equal": all(torch.equal(a, b) for a, b in pairs) and first["rates"] == second["rates"],
        "same_end": first["stop"] == alone["stop"],
    }


def markdown(recipes: dict[str, Any]) -> str:
    """A row per recipe."""
    lines = ["| recipe | went | DDP | FSDP2 |", "| --- | ---: | ---: | ---: |"]
    for name, one in recipes.items():
        cells = [
            "refused" if "refused" in one[way] else f"{one[way]['apart']:.1e}" for way in ("ddp", "fsdp")
        ]
        lines.append(f"| `{name}` | {one['went']:.1e} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all; write distances."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--methods", default="", help="with commas between; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.methods.split(",") if options.methods else [n for n in METHODS if not METHODS[n]().merge]
    start = {name: p.detach().clone() for name, p in build_model().named_parameters()}
    recipes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        launch(folder, names)
        for name in names:
            case = Case(name)
            alone = found(train(folder / "alone", case))
            ways = {way: compared(folder, way, case.label, alone) for way in ("ddp", "fsdp")}
            recipes[name] = {"went": apart(alone["parameters"], start), "steps": len(alone["losses"]), **ways}
    result = {"recipes": recipes, "environment": environment().model_dump()}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(markdown(recipes))
    if options.markdown:
        options.markdown.write_text(markdown(recipes), encoding="utf-8")


if __name__ == "__main__":
    main()
