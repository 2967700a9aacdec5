"""The command line as a user meets it: exit status, one message, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import conftest
from expunge import cli, terminal
from expunge.methods import METHODS
from expunge.record import read_record


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    """Three files of rows."""
    rows = conftest.rows()
    sets = {"forget": rows[:6], "retain": rows[6:], "holdout": conftest.rows(("Ivy Iris", "Jon Juniper"))}
    for name, found in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return {name: str(tmp_path / f"{name}.jsonl") for name in sets}


def call(*words: object) -> int:
    """Exit status of a command line, in this process."""
    return terminal.guarded(
        lambda: cli.app([str(word) for word in words], exit_on_error=False, print_error=False)
    )


def sets(data: dict[str, str], *names: str) -> list[str]:
    return [word for name in names for word in (f"--{name}", data[name])]


def test_run_prints_a_table_and_writes_the_folder(data, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = [
        "--set",
        "max_steps=3",
        "--set",
        "bf16=false",
        "--set",
        "rows=10",
        "--template",
        "none",
        "--seed",
        "5",
    ]
    assert (
        call(
            "run",
            "--model",
            model_folder,
            *sets(data, "forget", "retain", "holdout"),
            "--output",
            out,
            *options,
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "verbatim leak" in printed
    assert "step-limit" in printed
    assert str(out / "report.html") in printed.replace("\n", "")
    record = read_record(out)
    assert record.seed == 5
    assert record.configuration["max_steps"] == 3
    assert record.method == "ngdiff"
    assert call("report", out) == 0
    assert call("run", "--model", model_folder, *sets(data, "forget", "retain"), "--output", out) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_json_and_quiet_modes(data, model_folder, tmp_path, capsys):
    words = ["evaluate", "records", "--model", model_folder, *sets(data, "forget"), "--template", "none"]
    assert call(*words, "--output", tmp_path / "a", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["evaluations"]["before"]["forget"]["leak"]["n"] == 6
    assert call(*words, "--output", tmp_path / "b", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_config_file_and_its_precedence(data, model_folder, tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text(
        "method: grad-diff\nretain-weight: 2.0\nmax_steps: 7\nlearning_rate: 1e-4\nbf16: false\n"
    )
    words = ["run", "--model", model_folder, *sets(data, "forget", "retain"), "--template", "none", "--quiet"]
    words += ["--set", "check_every=0"]  # this model knows nothing: a look would end the run at once
    assert call(*words, "--config", config, "--output", tmp_path / "a", "--set", "max_steps=2") == 0
    record = read_record(tmp_path / "a")
    assert (record.method, record.configuration["max_steps"], record.configuration["learning_rate"]) == (
        "grad-diff",
        2,
        1e-4,
    )
    assert record.history[0].weights == {"-nll(forget)": 1.0, "nll(retain)": 2.0}


def test_finetune_takes_several_files(data, model_folder, tmp_path):
    words = [
        "finetune",
        "--model",
        model_folder,
        "--data",
        data["forget"],
        "--data",
        data["retain"],
        "--quiet",
    ]
    assert (
        call(
            *words,
            "--template",
            "none",
            "--set",
            "max_steps=2",
            "--set",
            "bf16=false",
            "--output",
            tmp_path / "a",
        )
        == 0
    )
    assert read_record(tmp_path / "a").data["train"].rows == 16
    assert read_record(tmp_path / "a").data["train"].sha256.count(" + ") == 1
    assert (tmp_path / "a" / "model" / "model.safetensors").is_file()


def test_list_names_every_choice(capsys):
    assert call("list") == 0
    printed = capsys.readouterr().out
    for name in ("ngdiff", "grad-diff", "grad-ascent", "dual-space-mgda", "records", "leak"):
        assert name in printed
    assert call("list", "methods") == 0
    assert "Normalized" not in capsys.readouterr().out


def test_list_says_every_recipes_idea_and_source(capsys):
    assert call("list", "methods") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, recipe in METHODS.items():
        idea, source = (
            recipe.__doc__.splitlines()[0].replace("$", ""),
            re.search(r"arXiv \S{10}", recipe.__doc__),
        )
        assert f"{name} {idea} (" in printed
        assert source[0] in printed


RUN = ("run", "--forget", "{forget}", "--retain", "{retain}", "--output", "o")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "run"),
        (["run", "--forgett", "x"], "--forget"),
        (["run", "--output", "o"], "--forget"),
        (["run", "--forget", "missing.jsonl", "--retain", "r", "--output", "o"], "missing.jsonl"),
        (
            [*RUN, "--method", "ngdif"],
            "Did you mean ngdiff",
        ),
        (["run", "--forget", "{forget}", "--output", "o", "--model", "{model}"], "--retain"),
        (["run", "--forget", "{forget}", "--retain", "{forget}", "--output", "o"], "share no record"),
        (
            [*RUN, "--set", "rows"],
            "KEY=VALUE",
        ),
        (
            [*RUN, "--set", "lr=1"],
            "names a setting|must name",
        ),
        (["run", "--forget", "{forget}", "--retain", "{retain}", "--output", "{forget}"], "is a file"),
        (
            [
                "run",
                "--forget",
                "{forget}",
                "--retain",
                "{retain}",
                "--output",
                "o",
                "--model",
                "smolm2-135m",
            ],
            "smollm2-135m",
        ),
        (
            [*RUN, "--config", "no.yaml"],
            "--config",
        ),
        ([*RUN, "--seed", "x"], "seed"),
        (["evaluate", "records", "--output", "o"], "Give at least one"),
        (["evaluate", "recrods", "--output", "o"], "records"),
        (["report", "nowhere"], "does not exist"),
        (["run", "--forget", "{forget}", "--output", "o", "--set", "retain={retain}"], "give it as --retain"),
        (
            [*RUN, "--set", "max_steps=x"],
            "max_steps",
        ),
        (
            [*RUN, "--set", "fp16=true"],
            "fp16",
        ),
        ([*RUN, "--set", "num_train_epochs=5"], r"must be left out \(`max_steps` says .*; got 5"),
        ([*RUN, "--set", "target_loss=0.1"], "`target_loss` belongs to finetune"),
        (
            ["finetune", "--data", "{forget}", "--output", "o", "--set", "target_loss=low"],
            "--set target_loss must be .*number.*; got 'low'",
        ),
        (["finetune", "--data", "{forget}", "--output", "o", "--set", "target_loss=0"], "positive; got 0"),
        ([*RUN, "--control", "nowhere"], "There is no model nowhere"),
        (["list", "method"], "methods"),
        (["finetune", "--data", "{forget}", "--output", "/proc/nowhere"], "--output must be writable"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    words, message, data, model_folder, tmp_path, capsys, monkeypatch
):
    import re

    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    filled = [word.format(**data, model=model_folder) for word in words]
    assert call(*filled) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    left = set(os.listdir(tmp_path)) - set(before)
    assert not any(path.suffix == ".safetensors" for name in left for path in (tmp_path / name).rglob("*"))


def test_overwrite_spares_folders_that_are_not_ours(data, model_folder, tmp_path, capsys):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("irreplaceable")
    words = [
        "run",
        "--model",
        model_folder,
        *sets(data, "forget", "retain"),
        "--output",
        precious,
        "--overwrite",
    ]
    assert call(*words) == 2
    assert "no record of a run" in capsys.readouterr().err
    assert (precious / "chapter1.tex").read_text() == "irreplaceable"


def test_ctrl_c_leaves_a_folder_that_resumes(data, model_folder, tmp_path):
    """A real process, a real signal: exit status 130, a checkpoint, and `--resume` finishes."""
    out = tmp_path / "out"
    words = [
        sys.executable, "-c", "from expunge.cli import main; main()", "run", "--model", str(model_folder),
        *sets(data, "forget", "retain"), "--output", str(out), "--template", "none",
        "--set", "max_steps=2000", "--set", "bf16=false", "--set", "rows=10",
        "--set", "tolerance=1000", "--set", "check_every=0",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while (
        not list((out / "checkpoints").glob("checkpoint-*/expunge_state.json"))
        and time.monotonic() < deadline
    ):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "--resume" in stdout
    assert "Traceback" not in stderr
    record = read_record(out)
    assert record.stop is not None
    assert record.stop.reason == "interrupted"
    assert not (out / "model").exists()
    done = record.stop.step
    finish = [*words, "--resume", "--quiet"]
    resumed = subprocess.Popen(
        finish, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while _newest(out) <= done and resumed.poll() is None and time.monotonic() < deadline + 120:
        time.sleep(0.05)
    resumed.send_signal(signal.SIGINT)
    _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 130, stderr
    continued = read_record(Path(out))
    assert [step.step for step in continued.history] == list(range(1, continued.stop.step + 1))
    assert continued.history[:done] == record.history
    assert continued.stop.step > done


def _newest(out: Path) -> int:
    """Step of the newest complete checkpoint; 0 if there is none."""
    found = (out / "checkpoints").glob("checkpoint-*/expunge_state.json")
    return max((int(path.parent.name.split("-")[1]) for path in found), default=0)


def test_help_is_short_and_for_newcomers(capsys):
    assert call("--help") == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 45
    for verb in ("demo", "finetune", "run", "evaluate", "list", "report"):
        assert verb in printed
    assert call("run", "--help") == 0
    assert "--forget" in capsys.readouterr().out


def test_starting_is_quick():
    """`--help` does not wait for torch."""
    code = "import sys, expunge.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_defect_of_ours_is_status_1(monkeypatch):
    def broken() -> None:
        raise RuntimeError("our fault")

    with pytest.raises(RuntimeError):
        terminal.guarded(broken)
