"""What a run survives: kills, signals, a disk that fails, losses that explode, a second run beside it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

import conftest
from expunge import UsageError, api, checkpoints, locks, output, terminal
from expunge.arguments import UnlearningArguments
from expunge.disk import writing
from expunge.explosion import exploded
from expunge.methods import grad_diff, ngdiff
from expunge.record import write_atomically
from expunge.unlearner import Unlearner

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:6], ROWS[6:]
BARE = replace(grad_diff(), budget=None)
"""A method that keeps no state in memory."""
REPOSITORY = Path(__file__).resolve().parents[1]


def unlearner(tokenizer, folder: Path, method, **settings) -> Unlearner:
    often = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 5}
    defaults = often | {"bf16": False, "template": "none", "learning_rate": 1e-3, "check_every": 0}
    return Unlearner(
        model=conftest.build_model(),
        args=UnlearningArguments(output_dir=str(folder), **defaults | {"max_steps": 6} | settings),
        method=method,
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
    )


class At(TrainerCallback):
    """Does something to a run after a step's optimizer has moved the weights."""

    def __init__(self, step: int, deed) -> None:
        self.step, self.deed = step, deed

    def on_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.deed()


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# --- kills -----------------------------------------------------------------------------------------


def test_a_killed_run_ends_as_if_nothing_had_been(tmp_path):
    """SIGKILL inside a save, before it has its name, inside GeN's probe, and while the model is written."""
    places = "gen/save:2,gen/sync:3,gen/probe:10,gen/model:1"
    words = [str(REPOSITORY / "benchmarks" / "faults" / "kill.py"), "--kinds", "gen", "--at", places]
    done = subprocess.run(
        [sys.executable, *words, "--output", str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["kills"], found["equal"], found["different"]) == (4, 4, 0)
    assert {moment.split(",")[0] for moment in found["moments"]} == {
        place.removeprefix("gen/") for place in places.split(",")
    }


def write_checkpoint(folder: Path, step: int, limit: int | None = None) -> Path:
    written = checkpoints.begin(folder) / f"checkpoint-{step}"
    written.mkdir()
    (written / "weights").write_bytes(b"x" * 100)
    return checkpoints.publish(folder, written.name, limit)


def test_a_half_written_checkpoint_is_never_chosen(tmp_path):
    write_checkpoint(tmp_path, 5)
    last = write_checkpoint(tmp_path, 10)
    assert checkpoints.newest(tmp_path) == last
    assert checkpoints.newest(tmp_path, before=10).name == "checkpoint-5"
    begun = checkpoints.begin(tmp_path) / "checkpoint-15"
    begun.mkdir()
    (begun / "weights").write_bytes(b"x" * 50)
    assert checkpoints.newest(tmp_path) == last
    (last / "weights").write_bytes(b"x" * 99)  # cut short behind our back
    assert checkpoints.newest(tmp_path).name == "checkpoint-5"
    (tmp_path / "checkpoint-5" / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path) is None


def test_checkpoints_rotate_and_the_one_just_written_stays(tmp_path):
    write_checkpoint(tmp_path, 200)  # of an earlier run, of a later step
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step, limit=2)
        assert (tmp_path / f"checkpoint-{step}").is_dir()
        assert len(list(tmp_path.iterdir())) == 2
    assert checkpoints.newest(tmp_path).name == "checkpoint-30"


# --- signals ---------------------------------------------------------------------------------------


def test_sigterm_ends_after_the_step_with_a_checkpoint(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, grad_diff(), save_steps=100)
    run.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    run.train()
    assert (run.stop.reason, run.stop.step) == ("interrupted", 3)
    assert checkpoints.newest(tmp_path).name == "checkpoint-3"


def test_sigterm_outside_training_is_an_interruption(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert terminal.guarded(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


# --- the disk --------------------------------------------------------------------------------------


def test_a_disk_that_refuses_to_write_leaves_the_last_checkpoint(tokenizer, tmp_path):
    """The kernel's limit on file sizes stands in for a full disk: torch and safetensors fail to write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = unlearner(tokenizer, tmp_path, grad_diff(), save_steps=2)
    run.add_callback(At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))))
    try:
        with pytest.raises(UsageError, match="A checkpoint must be written to"):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert checkpoints.newest(tmp_path).name == "checkpoint-2"
    again = unlearner(tokenizer, tmp_path, grad_diff(), save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert [step.step for step in again.history] == list(range(1, 7))


def test_a_full_disk_leaves_the_record_that_was_there(tmp_path, monkeypatch):
    write_atomically(tmp_path / "record.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("expunge.record.os.fsync", full)
    with pytest.raises(UsageError, match=r"no space left on device. Free some space"):
        write_atomically(tmp_path / "record.json", "new")
    assert (tmp_path / "record.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EACCES])
def test_what_the_file_system_does_is_one_message(number, capsys):
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/somewhere/file")

    assert terminal.guarded(fail) == 2
    printed = capsys.readouterr().err
    assert "/somewhere/file" in printed
    assert len(printed.splitlines()) == 1


def test_a_defect_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), writing("A checkpoint", tmp_path):
        raise RuntimeError("shapes do not match")


def test_only_the_owner_reads_a_file_that_is_being_written(tmp_path, monkeypatch):
    modes = []
    real = os.fsync

    def look(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        real(descriptor)

    monkeypatch.setattr("expunge.record.os.fsync", look)
    write_atomically(tmp_path / "a.json", "text")
    assert modes == [0o600]


# --- divergence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [50.0, float("nan")])
def test_a_diverged_run_returns_to_the_last_good_checkpoint(tokenizer, tmp_path, factor):
    """The weights are spoilt after step 4, which is saved as well; step 5 finds out, and step 3 returns."""
    run = unlearner(tokenizer, tmp_path, BARE, max_steps=8)
    seen = {}

    def spoil() -> None:
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.mul_(factor)

    run.add_callback(At(4, spoil))
    run.add_callback(SimpleCallback(lambda step: seen.setdefault(step, weights(run.model).clone())))
    run.train()
    assert (run.stop.reason, run.stop.step, run.stop.restored_step) == ("diverged", 4, 3)
    assert ("exploded" in run.stop.sentence) == (factor == 50.0)
    assert torch.equal(weights(run.model), seen[3])
    assert len(run.history) == 4


class SimpleCallback(TrainerCallback):
    def __init__(self, deed) -> None:
        self.deed = deed

    def on_step_end(self, args, state, control, **_):
        self.deed(state.global_step)


def test_a_run_with_a_budget_returns_to_its_own_last_good_state(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, ngdiff(tolerance=5.0, every=2, rows=10), save_strategy="no")
    seen = {}

    def spoil() -> None:
        with torch.no_grad():
            run.model.model.embed_tokens.weight.mul_(100.0)

    run.add_callback(At(4, spoil))
    run.add_callback(SimpleCallback(lambda step: seen.setdefault(step, weights(run.model).clone())))
    run.train()
    assert (run.stop.reason, run.stop.restored_step) == ("diverged", 2)
    assert torch.equal(weights(run.model), seen[2])


def test_weights_lost_in_the_last_step_are_found(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, BARE, max_steps=3, save_strategy="no")
    run.add_callback(At(3, lambda: run.model.model.norm.weight.data.fill_(float("inf"))))
    run.train()
    assert (run.stop.reason, run.stop.restored_step) == ("diverged", None)


def test_high_losses_of_a_model_that_never_knew_are_no_explosion():
    words = (grad_diff(), conftest.build_model())  # ln 384 = 5.95
    assert exploded(*words, {"nll(retain)": 12.0}, {"nll(retain)": 2.0})
    assert not exploded(*words, {"nll(retain)": 11.5}, {"nll(retain)": 2.0})
    assert not exploded(*words, {"nll(retain)": 12.0}, {"nll(retain)": 7.0})
    assert not exploded(*words, {"-nll(forget)": -90.0}, {})


def test_the_exit_status_says_diverged(capsys):
    record = SimpleNamespace(stop=SimpleNamespace(reason="diverged"))
    result = SimpleNamespace(record=record, folder=None)

    def call() -> None:
        terminal.finish(result, quiet=True, as_json=False)

    assert terminal.guarded(call) == 3


# --- two runs --------------------------------------------------------------------------------------


@locks.exclusive
def claiming(folder: Path, inside) -> None:
    output.claim(folder, resume=True)
    inside()


def test_the_second_run_into_a_folder_is_refused(tmp_path):
    """Another process tries while this one holds the folder, and again once it does not."""
    folder = tmp_path / "out"
    claiming(folder, lambda: refused(folder, True))
    refused(folder, False)


def refused(folder: Path, expected: bool) -> None:
    code = (
        "import sys; from pathlib import Path; from expunge import UsageError, locks, output\n"
        "@locks.exclusive\n"
        "def verb():\n    output.claim(Path(sys.argv[1]), resume=True)\n"
        "try: verb()\n"
        "except UsageError as error: sys.exit(str(error))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert (child.returncode == 1) == expected, child.stderr
    assert ("another run writes to" in child.stderr) == expected


def test_the_lock_of_a_dead_run_does_not_block(tmp_path):
    folder = tmp_path / "out"
    child = os.fork()
    if not child:
        claiming(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (folder / locks.LOCK).is_file()
    done = []
    claiming(folder, lambda: done.append(True))
    assert done


def test_a_refused_command_leaves_no_folder(tmp_path):
    sets = {"forget": FORGET, "retain": RETAIN}
    with pytest.raises(UsageError):
        api.unlearn(tmp_path / "no-model", **sets, output=tmp_path / "new" / "out", bf16=False)
    assert not list(tmp_path.iterdir())


# --- long jobs -------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_steps(tokenizer, tmp_path):
    """Resident memory from step 60 to step 160, saves included; benchmarks/faults/memory.py does 2,000."""
    run = unlearner(tokenizer, tmp_path, grad_diff(), max_steps=160, save_steps=40, save_total_limit=1)
    page, found = os.sysconf("SC_PAGE_SIZE"), {}

    def read(step: int) -> None:
        found[step] = int(Path("/proc/self/statm").read_text().split()[1]) * page

    run.add_callback(SimpleCallback(read))
    run.train()
    assert found[160] - found[60] < 100 * 60_000  # a copy of the tiny model at every step would be 250 kB
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-160"]
