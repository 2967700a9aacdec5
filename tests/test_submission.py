"""The challenge's function: in time, from both file kinds, and killed at any moment a whole model is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import lume_world
from conftest import build_model
from expunge import UsageError, snapshots
from expunge.deadline import Deadline, rank
from expunge.looks import Looks
from expunge.record import Check, Stop
from expunge.snapshots import INDEX, Snapshots
from expunge.submission import unlearn
from expunge.unlearner import Unlearner

QUICK = {"per_device_train_batch_size": 2, "check_rows": 4, "bf16": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As the challenge gives them: both files in each folder; the last one Parquet alone."""
    folder = tmp_path_factory.mktemp("private")
    for split in ("forget", "retain"):
        frame = pandas.DataFrame(lume_world.rows(split))
        (folder / split).mkdir()
        frame.to_parquet(folder / split / f"{split}.parquet")
    lume_world.write_jsonl(folder / "forget" / "forget.jsonl", lume_world.rows("forget"))
    return folder / "forget", folder / "retain"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    lume_world.half_remembering(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"
    return model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def test_it_unlearns(taught: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    unlearn(taught, tmp_path / "out", *data, max_steps=30, learning_rate=2e-4, **QUICK)
    assert not same(weights(tmp_path / "out"), weights(taught))
    left = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert left <= {".json", ".safetensors", ".jinja"}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_it_ends_in_time(taught: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    """By default there is no other limit that a run could reach in minutes."""
    started = time.monotonic()
    unlearn(taught, tmp_path / "out", *data, limit=2.0, learning_rate=1e-7, **QUICK)
    assert time.monotonic() - started < 10  # much slack: a slow machine is late before step one
    weights(tmp_path / "out")


def test_without_time_the_untouched_model_is_left(
    taught: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    unlearn(taught, tmp_path, *data, limit=1e-6, **QUICK)
    assert same(weights(tmp_path), weights(taught))


KILLED = """
import sys
from expunge import submission
submission.unlearn(*sys.argv[1:5], limit=600.0, method="grad-diff", tolerance=float("inf"), check_every=1,
                   learning_rate=1e-7, check_rows=4, per_device_train_batch_size=2, bf16=False)
"""


def test_killed_in_the_middle_it_leaves_a_whole_model(
    taught: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, *map(str, (taught, out, *data))]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 4 and process.poll() is None and time.monotonic() < deadline:
        seen.update(path.name for path in out.glob("model-*.safetensors"))
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    error = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, error
    assert len(seen) >= 4, error
    assert not same(weights(out), weights(taught)), "a state of the run"


# --- writing


def test_a_write_that_dies_anywhere_leaves_the_old_state_or_the_new(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the folder is made to fail once, before and after it has taken effect."""
    old, new = build_model(1), build_model(2)
    states = [old.state_dict(), new.state_dict()]
    calls, outcomes = [0], set()

    def dying(real: Any, at: float) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise KeyboardInterrupt
            result = real(*args, **kwargs)
            if calls[0] == at - 0.5:
                raise KeyboardInterrupt
            return result

        return call

    finished, at = False, 0.5
    while not finished:
        at += 0.5
        folder = tmp_path / str(at)
        Snapshots(folder).write(old, tokenizer)
        calls[0] = 0
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(os, name, dying(getattr(os, name), at))
            patch.setattr(type(new), "save_pretrained", dying(type(new).save_pretrained, at))
            try:
                Snapshots(folder).write(new, tokenizer)
                finished = True
            except KeyboardInterrupt:
                pass
        found = weights(folder)
        matches = [same(found, state) for state in states]
        assert any(matches), at
        outcomes.add(matches.index(True))
        Snapshots(folder).write(new, tokenizer)
        assert same(weights(folder), states[1]), "and can be written again"
        assert not list(folder.glob(".*"))
    assert outcomes == {0, 1}
    assert at > 6


def test_shards_are_renamed_each(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(3)
    real = type(model).save_pretrained
    monkeypatch.setattr(
        type(model), "save_pretrained", lambda self, to: real(self, to, max_shard_size="50KB")
    )
    Snapshots(tmp_path).write(model, tokenizer)
    Snapshots(tmp_path).write(model, tokenizer)
    index = json.loads((tmp_path / INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {path.name for path in tmp_path.glob("*.safetensors")}
    assert same(weights(tmp_path), model.state_dict())


def test_an_older_model_in_the_folder_is_not_read(tokenizer: Any, tmp_path: Path) -> None:
    build_model(4).save_pretrained(tmp_path)
    Snapshots(tmp_path).write(build_model(5), tokenizer)
    assert same(weights(tmp_path), build_model(5).state_dict())
    assert not (tmp_path / snapshots.SINGLE).exists()


# --- which state is best


def check(step: int, nll: float, preference: float, *, met: bool = False) -> Check:
    return Check(step=step, forget_nll=nll, forget_leak=0.0, control="swap", control_nll=4.0,
                 preference=preference, met=met)  # fmt: skip


def test_budget_comes_before_forgetting_and_forgetting_ends_at_the_control() -> None:
    start, on_the_way = rank(check(0, 0.1, 1.0), True, 0), rank(check(5, 2.0, 0.9), True, 5)
    forgotten, beyond = (
        rank(check(10, 4.0, 0.5, met=True), True, 10),
        rank(check(15, 9.0, 0.1, met=True), True, 15),
    )
    over = rank(check(20, 4.0, 0.5, met=True), False, 20)
    assert over < start < on_the_way < forgotten == beyond
    assert rank(check(3, float("nan"), 0.5), True, 3) < over
    assert rank(None, False, 9) < rank(None, True, 1) < rank(None, True, 2)


def test_beyond_the_control_fewer_leaks_are_better() -> None:
    def seen(nll: float, leak: float, *, met: bool = False) -> Check:
        return Check(step=1, forget_nll=nll, forget_leak=leak, control="holdout", control_nll=4.0,
                     control_leak=0.02, met=met)  # fmt: skip

    ways = [seen(0.1, 0.9), seen(4.0, 0.3), seen(4.5, 0.05), seen(9.0, 0.02, met=True)]
    ranks = [rank(way, within_budget=True, step=1) for way in ways]
    assert ranks == sorted(set(ranks))
    assert rank(seen(5.0, 0.0), within_budget=True, step=1) == rank(
        seen(4.0, 0.02), within_budget=True, step=1
    )


class FakeRun(Unlearner):
    """What `Deadline` asks of a run, with a clock that the test moves."""

    def __init__(self, looks: list[Check]) -> None:
        self.now, self.written = 0.0, list[int]()
        self.looks, self.args = looks, SimpleNamespace(should_save=True, check_every=1)  # type: ignore[assignment]
        self.state = SimpleNamespace(global_step=0)  # type: ignore[assignment]
        kept = SimpleNamespace(checks=looks[:1], over_budget=0, stop=None)
        self.monitor = SimpleNamespace(  # type: ignore[assignment]
            state=kept,
            check=True,
            look=lambda step, **_: looks[step],
            looks=Looks(leaks_first=True),
            agree=lambda value: value,
            end=self.name_the_end,
        )

    def name_the_end(self, step: int, reason: Any, sentence: str) -> None:
        self.monitor.state.stop = self.stop or Stop(reason=reason, sentence=sentence, step=step)

    def play(self, end: float, writing: float = 0.0) -> None:
        """Steps of one second; a look after each."""

        def write() -> None:
            self.written.append(self.state.global_step)
            self.now += writing

        control = SimpleNamespace(should_training_stop=False)
        deadline = Deadline(self, write, end, writing, lambda: self.now)
        deadline.on_train_begin(None, self.state, control)
        while not control.should_training_stop and self.state.global_step + 1 < len(self.looks):
            deadline.on_step_begin(None, self.state, control)
            self.state.global_step += 1
            self.now += 1
            self.monitor.state.checks.append(self.looks[self.state.global_step])
            deadline.on_step_end(None, self.state, control)
        deadline.finish()


def test_only_better_states_are_written() -> None:
    run = FakeRun([check(step, nll, 0.9) for step, nll in enumerate((0.5, 0.4, 1.0, 0.9, 3.0))])
    run.play(1e9)
    assert run.written == [2, 4]


def test_looks_between_are_not_written_unless_they_end_the_run() -> None:
    """Near the goal every step is looked at; each look is better, and a model takes long to write."""
    looks = [check(step, 0.1 * step, 0.9, met=step == 7) for step in range(8)]
    run = FakeRun(looks)
    run.args.check_every = 5
    run.play(1e9)
    assert run.written == [5, 7]


@pytest.mark.parametrize(("writing", "steps"), [(0.0, 9), (1.0, 4)])
def test_the_clock_ends_the_run_with_time_to_spare(writing: float, steps: int) -> None:
    """Steps of 1 s, each of which writes, and a limit of 11 s: twice step and writing are kept back."""
    run = FakeRun([check(i, 0.1 * i, 0.9) for i in range(30)])
    run.play(11.0, writing)
    assert run.state.global_step == steps
    assert run.written[-1] == steps
    assert run.now <= 11.0
    assert run.stop is not None
    assert run.stop.sentence == f"The time limit ended the run after step {steps}."


def test_looks_at_all_records_are_taken_where_there_is_time_beside_the_reserve() -> None:
    """A step of 1 s with a look of 4 s, writing of 1 s: 4 s are kept back, the look is not part of them."""
    run, control = FakeRun([check(i, 0.1 * i, 0.9) for i in range(3)]), SimpleNamespace()
    deadline = Deadline(run, lambda: None, 20.0, 1.0, lambda: run.now)
    assert run.monitor.looks.spare() == 20.0 - 2.0
    deadline.on_step_begin(None, run.state, control)
    run.now, run.state.global_step, run.monitor.looks.seconds = 5.0, 1, 4.0
    run.monitor.state.checks.append(run.looks[1])
    deadline.on_step_end(None, run.state, control)
    assert deadline.reserve == 4.0
    assert run.monitor.looks.spare() == 20.0 - 5.0 - 4.0
    assert run.stop is None
    deadline.on_step_begin(None, run.state, control)
    run.now, run.monitor.looks.seconds = 10.0, 8.0  # the same once more, and it names rows
    named = run.looks[1].model_copy(update={"step": 2, "remaining": [1]})
    run.monitor.state.checks.append(named)
    run.state.global_step = 2
    deadline.on_step_end(None, run.state, control)
    assert deadline.longest == 5.0


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0.0}, "must be a positive number of seconds"),
        ({"method": "magic"}, "must be one of"),
        ({"learning_rat": 1e-5}, "Did you mean learning_rate"),
    ],
)
def test_wrong_settings_are_refused(
    taught: Path, data: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        unlearn(taught, tmp_path / "out", *data, **change)
    assert not (tmp_path / "out").exists()


def test_a_missing_set_is_refused(taught: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="must hold one"):
        unlearn(taught, tmp_path / "out", tmp_path / "empty", data[1])
