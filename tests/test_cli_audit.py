"""`expunge audit` as a user meets it: on a finished run without another flag, and by flags alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import audit_world as world
import conftest
import expunge
from audit_world import FORGET, HOLDOUT, QUICK, RETAIN
from expunge.attacks import ATTACKS, ON_REQUEST
from expunge.audit_record import read_audit
from expunge.record import read_record
from test_cli import call

SHORT = ("--attacks", f"prompt,{world.__file__}:FirstTokens")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer) -> Path:
    """A folder with data, the taught model, and the folder of a run that made it forget."""
    folder = tmp_path_factory.mktemp("world")
    for name, rows in {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.taught(world.KEPT + world.GONE, tokenizer).save_pretrained(folder / "taught")
    tokenizer.save_pretrained(folder / "taught")
    conftest.build_model(seed=1).save_pretrained(folder / "control")
    tokenizer.save_pretrained(folder / "control")
    expunge.unlearn(
        folder / "taught",
        **{name: folder / f"{name}.jsonl" for name in ("forget", "retain", "holdout")},
        output=folder / "run",
        max_steps=20,
        learning_rate=1e-3,
        tolerance=0.5,
        rows=4,
        check_every=5,
        **QUICK,
    )
    return folder


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of the run's folder; its data and model stand where they stood."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


FEW = {"prompt": ATTACKS["prompt"], "prefix": ATTACKS["prefix"]}


def test_a_finished_run_needs_no_other_flag(run, place, capsys, monkeypatch):
    monkeypatch.setattr("expunge.auditing.material.ATTACKS", FEW)  # all of them take too long for a test
    assert call("audit", run) == 0
    printed = capsys.readouterr().out
    found = read_audit(run / "audit")
    assert found.verdict.word.capitalize() in printed
    assert str(run / "audit" / "report.html") in printed.replace("\n", "")
    record = read_record(run)
    assert {name: entry.sha256 for name, entry in found.data.items()} == {
        name: record.data[name].sha256 for name in ("forget", "retain", "holdout")
    }
    assert found.models["original"].sha256 == record.models["before"].sha256
    assert found.models["unlearned"].sha256 == record.models["after"].sha256
    assert found.configuration["template"] == "none"
    assert found.configuration["precision"] == "fp32"
    assert found.control == "holdout"
    assert {entry.name: entry.status for entry in found.attacks} == dict.fromkeys(FEW, "done")
    assert found.attack("prompt").results["original"].recovered.value == 1.0
    assert call("audit", run, *SHORT) == 2
    assert "--resume" in capsys.readouterr().err

    assert call("audit", "--model", run, *SHORT, "--resume", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert read_audit(run / "audit").attack("first-tokens").status == "done"
    (run / "audit" / "report.html").unlink()
    assert call("report", run / "audit") == 0
    assert (run / "audit" / "report.html").is_file()


@pytest.mark.parametrize("around", [(), ("--filters", "refuse-answers")], ids=["bare", "filtered"])
def test_every_attack_runs_on_a_finished_run(around, run):
    """All that is tried by default, cut short: none fails, and what cannot run names what it lacks."""
    assert call("audit", run, "--seconds", "0.2", *around) == 0
    found = read_audit(run / "audit")
    assert {entry.name for entry in found.attacks} == set(ATTACKS) - ON_REQUEST
    assert {entry.name: entry.why for entry in found.attacks if entry.status == "failed"} == {}
    left = {entry.name: entry.why for entry in found.attacks if entry.status == "skipped"}
    assert set(left) <= {"adapter", "composed", "few-shot", "linear-probe"}
    assert all(re.search(r"needs|give|no adapter", why, re.IGNORECASE) for why in left.values()), left
    assert not any("Not on" in entry.why for entry in found.attacks if entry.status == "done")


def test_filters_that_are_none_are_refused(run, capsys):
    assert call("audit", run, "--filters", "") == 2
    assert "--filters must name at least one filter" in capsys.readouterr().err
    assert call("audit", run, "--filters", "refuse-answer") == 2
    assert "Did you mean refuse-answers?" in " ".join(capsys.readouterr().err.split())
    assert not (run / "audit").exists()


def test_a_mistyped_folder_is_named(capsys, tmp_path):
    assert call("audit", tmp_path / "nowhere") == 2
    assert "nowhere is no folder here. Check the path, or give --output DIR." in " ".join(
        capsys.readouterr().err.split()
    )


def test_flags_alone_and_json(place, tmp_path, capsys):
    words = ["audit", "--model", place / "run" / "model", "--forget", place / "forget.jsonl"]
    words += ["--control", place / "control", "--original", place / "taught", *SHORT, "--template", "none"]
    words += ["--set", "bf16=false"]
    assert call(*words) == 2
    assert "--output" in capsys.readouterr().err
    assert call(*words, "--output", tmp_path / "a", "--json", "--seed", 4, "--redact") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["seed"], found["control"], found["redacted"]) == (4, "model", True)
    assert FORGET[0]["response"] not in out + err


def test_files_that_changed_since_the_run_are_refused(run, place, tmp_path, capsys):
    record = json.loads((run / "record.json").read_text())
    changed = tmp_path / "forget.jsonl"
    changed.write_text(json.dumps({"prompt": "Who?", "response": "Nobody"}) + "\n")
    record["data"]["forget"]["source"] = str(changed)
    (run / "record.json").write_text(json.dumps(record))
    assert call("audit", run) == 2
    assert "has changed since" in capsys.readouterr().err
    assert not (run / "audit").exists()
    changed.unlink()
    assert call("audit", run) == 2
    assert "Give --forget FILE" in " ".join(capsys.readouterr().err.split())
    words = ["audit", run, "--forget", place / "forget.jsonl", "--attacks", "prompt", "--quiet"]
    assert call(*words) == 0
    record["models"]["before"]["sha256"] = "0" * 64
    (run / "record.json").write_text(json.dumps(record))
    assert call(*words, "--overwrite") == 2
    assert "original model must be the one of the run" in " ".join(capsys.readouterr().err.split())
    assert (run / "audit" / "audit.json").is_file(), "what stands there goes only once all input is accepted"


def test_what_a_run_cannot_name_any_more_is_a_note(run, capsys):
    record = json.loads((run / "record.json").read_text())
    record["data"]["retain"]["source"] = "the retain list"
    record["models"]["before"]["source"] = "smollm2, taught something"
    (run / "record.json").write_text(json.dumps(record))
    assert call("audit", run, "--attacks", "prompt") == 0
    found = read_audit(run / "audit")
    assert "original" not in found.models
    assert any("retain records" in note for note in found.notes)
    assert any("original model is not to be had" in note for note in found.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "audit needs a model"),
        (["{run}", "--model", "x"], "not both"),
        (["{run}", "--seconds", "0"], "--seconds must be positive"),
        (["{run}", "--attacks", "promt"], "Did you mean prompt?"),
        (["{run}", "--set", "seconds=3"], "--set must not name seconds"),
        (["{run}", "--set", "prompt:steps=3"], "it has none"),
        (
            ["nowhere", "--output", "{run}/b", "--forget", "{run}/../forget.jsonl"],
            "There is no model nowhere",
        ),
        (["{run}/data"], "it is given that of a run"),
    ],
)
def test_one_message_and_exit_status_2(words, message, run, place, capsys):
    shutil.copy(place / "forget.jsonl", run.parent / "forget.jsonl")
    assert call("audit", *(word.replace("{run}", str(run)) for word in words)) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert message in err
    assert "Traceback" not in err


def test_ctrl_c_keeps_what_has_ended_and_says_how_to_go_on(run, tmp_path, capsys):
    (tmp_path / "stops.py").write_text(
        "from audit_world import FirstTokens\n"
        "class Stops(FirstTokens):\n"
        "    name = 'stops'\n"
        "    def run(self, target, probes, setting):\n"
        "        raise KeyboardInterrupt\n"
    )
    assert call("audit", run, "--attacks", f"prompt,{tmp_path / 'stops.py'}:Stops") == 130
    assert "--resume continues" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in sorted((run / "audit" / "findings").iterdir())] == [
        "prompt-holdout.json",
        "prompt-original.json",
        "prompt-unlearned.json",
    ]
    assert call("audit", run, "--attacks", "prompt", "--resume", "--quiet") == 0


def test_a_run_is_found_from_elsewhere_by_its_relative_paths(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "moved")
    record = json.loads((tmp_path / "moved" / "run" / "record.json").read_text())
    for name in ("forget", "retain", "holdout"):
        record["data"][name]["source"] = f"{name}.jsonl"
    record["models"]["before"]["source"] = "taught"
    (tmp_path / "moved" / "run" / "record.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    assert call("audit", "moved/run", "--attacks", "prompt", "--quiet") == 0
    assert set(read_audit(tmp_path / "moved" / "run" / "audit").models) == {"unlearned", "original"}


def test_a_run_that_has_not_ended_is_refused(run, capsys):
    shutil.rmtree(run / "model")
    assert call("audit", run) == 2
    assert "must hold model/" in capsys.readouterr().err


def test_attacks_are_listed(capsys):
    assert call("list", "attacks") == 0
    printed = capsys.readouterr().out
    assert "prompt" in printed
    assert "ngdiff" not in printed
