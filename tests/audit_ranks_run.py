"""One rank of two that share an audit, started by `test_audit_ranks.py` through torch.distributed.run.

The attacks at its top are used there, too: each writes down that it was run, and by whom.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import audit_world as world
from conftest import PEOPLE, build_model, build_tokenizer, rows
from expunge import UsageError, audit
from expunge.attacks.attack import Findings, Probes, Setting, Target
from expunge.models import load_model, load_tokenizer

SETS = {"forget": rows(PEOPLE[:4]), "retain": rows(PEOPLE[4:]), "holdout": rows(world.UNSEEN)}
PLACE = "AUDIT_RANKS"
"""Variable that names the folder in which attacks meet and write."""


@dataclass(frozen=True)
class Noted(world.FirstTokens):
    """Generates, and writes down that it did."""

    name: ClassVar[str] = "noted"

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rank = os.environ.get("RANK", "0")
        with (Path(os.environ[PLACE]) / f"runs-{rank}.txt").open("a") as stream:
            stream.write(f"{self.name} {target.role} {probes.forget[0].prompt}\n")
        return super().run(target, probes, setting)


class Meeting(Noted):
    """Waits until its partner runs, which takes another process."""

    partner: ClassVar[str] = ""

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        meeting = Path(os.environ[PLACE])
        (meeting / self.name).touch()
        end = time.monotonic() + 100
        while "RANK" in os.environ and not (meeting / self.partner).exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.partner} does not run beside {self.name}")
            time.sleep(0.02)
        return super().run(target, probes, setting)


class Left(Meeting):
    name: ClassVar[str] = "left"
    partner: ClassVar[str] = "right"


class Right(Meeting):
    name: ClassVar[str] = "right"
    partner: ClassVar[str] = "left"


class Failing(Noted):
    """Has a defect, which the control alone shows."""

    name: ClassVar[str] = "failing"
    on: ClassVar[str] = "control"

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        found = super().run(target, probes, setting)
        if target.role == self.on:
            raise RuntimeError("the moon is wrong")
        return found


class Broken(Failing):
    name: ClassVar[str] = "broken"
    on: ClassVar[str] = "unlearned"


class Skipped(Noted):
    name: ClassVar[str] = "skipped"

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return "It needs a full moon. Wait for one."


class Changing(Left):
    """Breaks the rule that a model is left as it was, while another attack runs beside it."""

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        found = super().run(target, probes, setting)
        with torch.no_grad():
            next(target.model.parameters()).add_(1.0)
        return found


class Stopped(Left):
    """Its process is told to end, while another attack runs beside it."""

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        super().run(target, probes, setting)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("nobody ended it")


BUILT_IN = ("prompt", "prefix", "membership-loss")
OWN = (Left, Noted, Failing, Broken, Skipped, Right)


def named(*kinds: type) -> list[str]:
    """The attacks as the command line names them."""
    return [*BUILT_IN, *(f"{Path(__file__).resolve()}:{kind.__name__}" for kind in kinds)]


def words(folder: Path, attacks: list[str]) -> list[str]:
    """`expunge audit` of the models and records that lie in a folder."""
    models = ["--model", str(folder / "taught"), "--control", str(folder / "control")]
    sets = [part for name in SETS for part in (f"--{name}", str(folder / f"{name}.jsonl"))]
    rest = ["--template", "none", "--set", "bf16=false", "--set", "use_cpu=true"]
    return ["audit", *models, *sets, *rest, "--attacks", ",".join(attacks)]


def called(arguments: list[str]) -> dict[str, Any]:
    """Exit status of the command line, and what it printed."""
    from expunge.cli import app
    from expunge.terminal import guarded

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = guarded(lambda: app(arguments, exit_on_error=False, print_error=False))
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def raised(call: Callable[[], Any]) -> str:
    """The message of what a call raises."""
    try:
        call()
    except (UsageError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_memory(folder: Path, **more: Any) -> Any:
    """The same audit of models in memory, with no folder to write to."""
    models = {"control": load_model(folder / "control")}
    settings = SETS | models | {"bf16": False, "template": "none", "use_cpu": True, "attacks": named(Noted)}
    tokenizer = load_tokenizer(folder / "taught")
    return audit(load_model(folder / "taught"), tokenizer, **(settings | more)).record


def meet(folder: Path, name: str) -> None:
    """Attacks meet and write in a new folder from here on."""
    os.environ[PLACE] = str(folder / name)
    (folder / name).mkdir(exist_ok=True)


def main(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    meet(folder, "shared-runs")
    whole = [*words(folder, named(*OWN)), "--output", str(folder / "shared"), "--json"]
    found["shared"] = called(whole)
    meet(folder, "resumed-runs")
    found["resumed"] = called([*whole, "--resume", "--redact"])
    meet(folder, "memory-runs")
    found["memory"] = in_memory(folder).model_dump_json()
    tokenizer, knowing = build_tokenizer(), load_model(folder / "taught")
    with torch.no_grad():
        knowing.model.norm.weight.mul_(1.01)
    found["knowing"] = raised(lambda: in_memory(folder, control=knowing))
    model = build_model()
    wrapped = DistributedDataParallel(build_model())
    fully_shard(model)
    for name, spread in (("sharded", model), ("wrapped", wrapped)):
        found[name] = raised(lambda spread=spread: audit(spread, tokenizer, **SETS, use_cpu=True, bf16=False))
    meet(folder, "changed-runs")
    changing = [*words(folder, named(Changing, Right)), "--output", str(folder / "changed"), "--quiet"]
    found["changed"] = called(changing)
    meet(folder, "stopped-runs")
    stopping = [*words(folder, named(Stopped, Right)), "--output", str(folder / "stopped"), "--quiet"]
    found["stopped"] = called(stopping)
    return found


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), int(os.environ["RANK"])
    (place / f"rank-{number}.json").write_text(json.dumps(main(place, number)))
    if dist.is_initialized():
        dist.destroy_process_group()
