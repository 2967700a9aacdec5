"""A folder against its record, and a record without the words of the records."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import conftest
from expunge import UsageError, api, cli, terminal
from expunge.record import read_record
from expunge.redaction import hidden
from expunge.verify import Finding, verify

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
    assert call(*typed(data, model_folder, out)) == 0
    return out


def typed(data: dict[str, Path], model: Path, out: Path) -> list[object]:
    """The words of that run."""
    words = [word for name, path in data.items() for word in (f"--{name}", path)]
    settings = ["--set", "max_steps=2", "--set", "bf16=false", "--template", "none", "--set", "check_every=0"]
    options = ["--quiet", "--redact", "--method", "grad-diff"]
    return ["run", "--model", model, *words, "--output", out, *settings, *options]


def verdicts(folder: Path) -> dict[str, str]:
    return {finding.what.split(" (")[0]: finding.verdict for finding in verify(folder)}


def test_a_run_holds_what_its_record_says(run, capsys):
    found = verdicts(run)
    assert found.pop("record.json") == "readable"  # there is nothing to compare it with
    assert set(found.values()) == {"verified"}
    assert set(found) == {
        "history", "files of model/", "model before", "model/", "data forget", "data retain", "data holdout",
        "report.html",
    }  # fmt: skip
    files = {path.name for path in (run / "model").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= files
    assert set(read_record(run).files) == files
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


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


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


def files_differing(found: list[Finding]) -> dict[str, str]:
    """File of model/ -> "changed", "missing" or "added"."""
    named = {f.what.removeprefix("model/"): f.why.split(":")[0] for f in found if f.what.startswith("model/")}
    return {name: why for name, why in named.items() if why in ("changed", "missing", "added")}


def test_every_file_of_the_model_is_compared(run, tmp_path, capsys):
    """All of these leave the weights as they were."""
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "run" / "model"
    edit_json(model / "config.json", max_position_embeddings=99)
    edit_json(model / "tokenizer_config.json", chat_template="{{ 'Yes' }}")
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + " ")
    (model / "generation_config.json").unlink()
    (model / "chat_template.jinja").write_text("{{ 'Yes' }}")
    (model / "code").mkdir()
    (model / "code" / ".own.py").write_text("import os")
    (model / "a\x1b[31m").symlink_to(tmp_path / "nowhere")
    (model / "away").symlink_to(tmp_path)
    found = verify(tmp_path / "run")
    assert files_differing(found) == {
        "config.json": "changed",
        "tokenizer_config.json": "changed",
        "tokenizer.json": "changed",
        "generation_config.json": "missing",
        "chat_template.jinja": "added",
        "code/.own.py": "added",
        r"a\x1b[31m": "added",
        "away": "added",
    }
    assert {f.verdict for f in found if f.what.startswith("model/ ")} == {"verified"}  # the weights
    assert "files of model/" not in {f.what for f in found}
    assert call("verify", tmp_path / "run") == 2
    printed = capsys.readouterr()
    assert all(name in printed.err for name in ("model/config.json: changed", "model/code/.own.py: added"))
    assert "\x1b" not in printed.out + printed.err


def test_no_code_runs_out_of_a_changed_model(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    marker = tmp_path / "ran"
    (tmp_path / "run" / "model" / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    edit_json(
        tmp_path / "run" / "model" / "config.json",
        model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    )  # fmt: skip
    found = {f.what: f.verdict for f in verify(tmp_path / "run", trust_remote_code=True)}
    assert found["model/ (after)"] == "not checked"
    assert (found["model/own.py"], found["model/config.json"]) == ("differs", "differs")
    assert not marker.exists()


def test_a_record_that_names_no_files_is_still_read(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    del record["files"]
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    found = verdicts(tmp_path / "run")
    assert found.pop("files of model/") == "not checked"
    assert set(found.values()) == {"verified", "readable"}


def finetuned(data: dict[str, Path], model: Path, run: Path, out: Path) -> None:
    api.finetune(model, data=data["retain"], output=out, **FAST)


def adapted(data: dict[str, Path], model: Path, run: Path, out: Path) -> None:
    sets = {"forget": data["forget"], "retain": data["retain"]}
    api.unlearn(model, **sets, output=out, method="grad-diff", lora_rank=2, lora_merge=False, **FAST)


def continued(data: dict[str, Path], model: Path, run: Path, out: Path) -> None:
    sets = {"forget": data["holdout"], "retain": data["retain"]}
    api.unlearn(after=run, **sets, output=out, method="grad-diff", **FAST)


FAST = {"max_steps": 1, "evaluate": False, "bf16": False, "template": "none", "check_every": 0, "seed": 0}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
@pytest.mark.parametrize(
    ("make", "config"),
    [(finetuned, "config.json"), (adapted, "adapter_config.json"), (continued, "config.json")],
)
def test_every_verb_that_saves_a_model_names_its_files(make, config, data, model_folder, run, tmp_path):
    out = tmp_path / "out"
    make(data, model_folder, run, out)
    found = verdicts(out)
    assert (found["files of model/"], found["model/"]) == ("verified", "verified")
    assert "differs" not in found.values()
    edit_json(out / "model" / config, note="edited")
    (out / "model" / "tokenizer_config.json").unlink()
    assert files_differing(verify(out)) == {config: "changed", "tokenizer_config.json": "missing"}


def test_a_finished_training_is_not_evaluated_with_another_tokenizer(
    run, data, model_folder, tmp_path, capsys
):
    """Killed between training and the last evaluation; then a file beside the weights was edited."""
    out = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((out / "record.json").read_text())
    del record["evaluations"]["after"]
    (out / "record.json").write_text(json.dumps(record))
    edit_json(out / "model" / "tokenizer_config.json", note="edited")
    assert call(*typed(data, model_folder, out), "--resume") == 2
    assert "tokenizer_config.json is changed" in capsys.readouterr().err


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


def test_a_run_prints_no_record(data, model_folder, tmp_path, capsys, caplog):
    """Neither bars nor log nor table, without --redact and without --quiet."""
    words = [
        word for word in typed(data, model_folder, tmp_path / "out") if word not in ("--quiet", "--redact")
    ]
    with caplog.at_level(logging.DEBUG, logger="expunge"):
        assert call(*words) == 0
    printed = capsys.readouterr()
    assert "Evaluating (before)" in printed.err
    assert "Report:" in printed.out
    texts = [text for rows in SETS.values() for row in rows for text in row.values()]
    assert any(text in (tmp_path / "out" / "record.json").read_text() for text in texts)  # it had them
    said = "".join((printed.out + printed.err + caplog.text).split())  # tables break lines
    assert not [text for text in texts if "".join(text.split()) in said]


def test_redacted_messages_show_no_record(data, model_folder, tmp_path, capsys):
    secret = "Ada Ash's number is 555-0147"
    (tmp_path / "bad.jsonl").write_text(f'{{"prompt": "{secret}", "response"}}\n')
    words = ["run", "--model", model_folder, "--retain", data["retain"], "--output", tmp_path / "o"]
    assert call(*words, "--forget", tmp_path / "bad.jsonl") == 2
    printed = capsys.readouterr().err
    assert f"{tmp_path / 'bad.jsonl'}, line 1" in printed
    assert secret not in printed
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
