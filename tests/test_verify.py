"""A folder against its record, and a record without the words of the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import conftest
from expunge import UsageError, api, cli, terminal
from expunge.record import read_record
from expunge.redaction import hidden
from expunge.verify import verify

ROWS = conftest.rows()
SETS = {"forget": ROWS[:6], "retain": ROWS[6:], "holdout": conftest.rows(("Ivy Iris", "Jon Juniper"))}


def call(*words: object) -> int:
    return terminal.guarded(
        lambda: cli.app([str(word) for word in words], exit_on_error=False, print_error=False)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in SETS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: folder / f"{name}.jsonl" for name in SETS}


@pytest.fixture(scope="module")
def run(data, model_folder, tmp_path_factory) -> Path:
    """One redacted run of the command line."""
    out = tmp_path_factory.mktemp("verify") / "out"
    words = [word for name, path in data.items() for word in (f"--{name}", path)]
    settings = ["--set", "max_steps=2", "--set", "bf16=false", "--template", "none", "--set", "check_every=0"]
    options = ["--quiet", "--redact", "--method", "grad-diff"]
    assert call("run", "--model", model_folder, *words, "--output", out, *settings, *options) == 0
    return out


def verdicts(folder: Path) -> dict[str, str]:
    return {finding.what.split(" (")[0]: finding.verdict for finding in verify(folder)}


def test_a_run_holds_what_its_record_says(run, capsys):
    found = verdicts(run)
    assert set(found.values()) == {"verified"}
    assert set(found) == {
        "record.json", "history", "model before", "model/", "data forget", "data retain", "data holdout",
        "report.html",
    }  # fmt: skip
    assert call("verify", run) == 0
    assert "verified" in capsys.readouterr().out


def changed(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def reweigh(path: Path) -> None:
    """One weight, by the smallest step that there is."""
    state = load_file(path)
    weight = state["model.norm.weight"]
    weight[0] = weight[0].nextafter(weight[0] + 1)
    save_file(state, path, metadata={"format": "pt"})


def edit_history(path: Path) -> None:
    record = json.loads(path.read_text())
    del record["history"][0]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (lambda run, data: reweigh(run / "model" / "model.safetensors"), "model/"),
        (lambda run, data: (run / "model" / "model.safetensors").unlink(), "model/"),
        (lambda run, data: changed(data["retain"], "\n"), "data retain"),
        (lambda run, data: changed(run / "report.html", " "), "report.html"),
        (lambda run, data: (run / "report.html").unlink(), "report.html"),
        (lambda run, data: edit_history(run / "record.json"), "history"),
    ],
)
def test_what_was_changed_is_named(run, data, tamper, what, tmp_path, capsys):
    import shutil

    before = data["retain"].read_text()
    shutil.copytree(run, tmp_path / "run")
    tamper(tmp_path / "run", data)
    try:
        assert verdicts(tmp_path / "run")[what] == "differs"
        assert call("verify", tmp_path / "run", "--quiet") == 2
        printed = capsys.readouterr()
        assert what in printed.err
        assert printed.out == ""
    finally:
        data["retain"].write_text(before)


def test_what_is_not_here_is_said_to_be_unchecked(run, data, capsys):
    moved = data["forget"].rename(data["forget"].with_suffix(".away"))
    try:
        assert verdicts(run)["data forget"] == "not checked"
        assert call("verify", run, "--json") == 0
    finally:
        moved.rename(data["forget"])
    found = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "there is no file" in found[f"data forget ({data['forget']})"]["why"]


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"record\.json does not exist"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        verify(tmp_path / "nowhere")
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UsageError, match="schema version"):
        verify(tmp_path)


# --- redaction -------------------------------------------------------------------------------------


def test_a_redacted_run_holds_no_word_of_the_records(run):
    texts = [text for rows in SETS.values() for row in rows for text in row.values()]
    for name in ("record.json", "report.html"):
        content = (run / name).read_text()
        assert not [text for text in texts if text in content or json.dumps(text)[1:-1] in content]
        assert "Redacted" in content
    record = read_record(run)
    assert record.samples
    assert all(sample.prompt.endswith("]") and "characters" in sample.prompt for sample in record.samples)
    lengths = {row["prompt"]: len(row["prompt"]) for row in SETS["forget"]}
    shown = [sample.prompt for sample in record.samples if sample.split == "forget"]
    assert [int(prompt[1:].split()[0]) for prompt in shown] == list(lengths.values())[: len(shown)]


def test_an_unredacted_run_shows_them(data, model_folder, tmp_path):
    """What the test above looks for is there without --redact."""
    api.evaluate(
        model_folder, forget=data["forget"], output=tmp_path / "out", bf16=False, template="none", seed=0
    )
    assert SETS["forget"][0]["prompt"] in (tmp_path / "out" / "record.json").read_text()


def test_redacted_messages_show_no_record(data, model_folder, tmp_path, capsys):
    secret = "Ada Ash's number is 555-0147"
    (tmp_path / "bad.jsonl").write_text(f'{{"prompt": "{secret}", "response"}}\n')
    words = ["run", "--model", model_folder, "--retain", data["retain"], "--output", tmp_path / "o"]
    assert call(*words, "--forget", tmp_path / "bad.jsonl") == 2
    assert secret in capsys.readouterr().err
    assert call(*words, "--forget", tmp_path / "bad.jsonl", "--redact") == 2
    printed = capsys.readouterr().err
    assert "line 1" in printed
    assert secret not in printed
    assert call(*words, "--forget", data["retain"], "--redact") == 2
    printed = capsys.readouterr().err
    assert "share no record" in printed
    assert ROWS[6]["prompt"] not in printed


def test_hashes_tell_equality_and_no_more():
    assert hidden("555-0147", b"a") == hidden("555-0147", b"a") != hidden("555-0148", b"a")
    assert hidden("555-0147", b"a") != hidden("555-0147", b"b")
    assert hidden("\ud800", b"a").startswith("[1 characters, ")
