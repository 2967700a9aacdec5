"""The recipe files of docs/cluster, each run with two gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import rows
from expunge.record import read_record

DOCS = Path(__file__).resolve().parents[1] / "docs" / "cluster"
SOURCE = Path(__file__).resolve().parents[1] / "src"
SETTINGS = ["max_steps=2", "use_cpu=true", "bf16=false", "template=none", "check_every=0"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, part in (("forget", rows()[:6]), ("retain", rows()[6:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return tmp_path


def start(command: list[str], folder: Path, **variables: str) -> None:
    """Run with this interpreter as `python`, and a scheduler's programs where the recipe calls for them."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "python").symlink_to(sys.executable)
    for name, body in (("scontrol", "echo localhost"), ("srun", 'shift; exec "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    environment = (
        os.environ
        | variables
        | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
    )
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def words(model: Path) -> list[str]:
    return ["--model", str(model), "--quiet", *(w for pair in SETTINGS for w in ("--set", pair))]


def check(folder: Path) -> None:
    record = read_record(folder / "out")
    assert record.stop is not None
    assert record.stop.reason == "step-limit"
    assert len(record.history) == 2
    saved = load_file(folder / "out" / "model" / "model.safetensors")
    assert saved["model.embed_tokens.weight"].shape == (384, 48)
    assert record.models["after"].sha256 != record.models["before"].sha256
    assert not list((folder / "out").glob(".model.*"))


def test_torchrun(data, model_folder):
    script = [str(DOCS / "torchrun.sh"), "2", "forget.jsonl", "retain.jsonl", "out"]
    start(["bash", *script, *words(model_folder)], data)
    check(data)


def test_slurm(data, model_folder):
    script = [str(DOCS / "slurm.sh"), "forget.jsonl", "retain.jsonl", "out"]
    job = {"SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1", "SLURM_JOB_ID": "77", "GPUS_PER_NODE": "2"}
    start(["bash", *script, *words(model_folder)], data, **job)
    check(data)


def test_accelerate(data, model_folder):
    launch = ["python", "-m", "accelerate.commands.launch", "--config_file", str(DOCS / "fsdp2.yaml")]
    here = ["--num_processes=2", "--cpu", "--mixed_precision=no", "-m", "expunge", "run"]
    sets = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output", "out"]
    start([*launch, *here, *sets, *words(model_folder)], data)
    check(data)
