"""The recipe files of docs/cluster, each run with two gloo processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import rows
from expunge.record import read_record

DOCS = Path(__file__).resolve().parents[1] / "docs" / "cluster"
SOURCE = Path(__file__).resolve().parents[1] / "src"
SETTINGS = {"max_steps": 2, "use_cpu": True, "bf16": False, "template": "none", "check_every": 0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, part in (("forget", rows()[:6]), ("retain", rows()[6:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return tmp_path


def start(command: list[str], folder: Path, **variables: str) -> str:
    """Run to the end, with success; what it says."""
    process = begin(command, folder, **variables)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-3000:]
    return stdout


def begin(command: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Run with this interpreter as `python`, and a scheduler's programs where the recipe calls for them."""
    tools = folder / "bin"
    if not tools.exists():
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
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def words(model: Path, **settings: object) -> list[str]:
    pairs = [f"{key}={value}" for key, value in (SETTINGS | settings).items()]
    return ["--model", str(model), "--quiet", *(word for pair in pairs for word in ("--set", pair))]


def check(folder: Path, steps: int = 2) -> None:
    record = read_record(folder / "out")
    assert record.stop is not None
    assert "The model was sharded over 2 processes." in record.notes
    assert record.stop.reason == "step-limit"
    assert len(record.history) == steps
    saved = load_file(folder / "out" / "model" / "model.safetensors")
    assert saved["model.embed_tokens.weight"].shape == (384, 48)
    assert record.models["after"].sha256 != record.models["before"].sha256
    assert not list((folder / "out").glob(".model.*"))


def test_torchrun(data, model_folder):
    script = [str(DOCS / "torchrun.sh"), "2", "forget.jsonl", "retain.jsonl", "out"]
    start(["bash", *script, *words(model_folder)], data)
    check(data)


def test_slurm_goes_on_after_a_preemption(data, model_folder):
    """The signal reaches every process of the step, and ranks once more through their launcher."""
    script = [str(DOCS / "slurm.sh"), "forget.jsonl", "retain.jsonl", "out"]
    job = {"SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1", "SLURM_JOB_ID": "77", "GPUS_PER_NODE": "2"}
    steps = 30
    command = ["bash", *script, *words(model_folder, max_steps=steps, save_steps=1, tolerance=1000)]
    process = begin(command, data, **job)
    out = data / "out"
    while not list((out / "checkpoints").glob("checkpoint-*/expunge_state.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "KeyboardInterrupt" not in stderr
    record = read_record(out)
    assert record.stop.reason == "interrupted", stderr[-3000:]
    done = record.stop.step
    assert 1 <= done < steps
    assert (out / "checkpoints" / f"checkpoint-{done}").is_dir()
    start(command, data, **job)
    check(data, steps)
    assert read_record(out).history[:done] == record.history


def test_accelerate(data, model_folder):
    launch = ["python", "-m", "accelerate.commands.launch", "--config_file", str(DOCS / "fsdp2.yaml")]
    here = ["--num_processes=2", "-m", "expunge", "run"]
    sets = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output", "out"]
    loud = ["--json" if word == "--quiet" else word for word in words(model_folder)]
    (said,) = start([*launch, *here, *sets, *loud], data).splitlines()  # once, though two processes ran
    assert json.loads(said)["stop"]["reason"] == "step-limit"
    check(data)
