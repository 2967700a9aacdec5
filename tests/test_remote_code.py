"""A model's own code runs where a user lets it, and nowhere else: audit, compare, neighbours."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import conftest
from test_cli import call

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM


class MartianConfig(LlamaConfig):
    model_type = "martian"


class Martian(LlamaForCausalLM):
    config_class = MartianConfig


Path({ran!r}).touch()
"""


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch) -> Path:
    """A folder with data and a model of a kind that only its own code knows; `ran` appears when that runs."""
    shutil.copytree(model_folder, tmp_path / "martian")
    config = json.loads((tmp_path / "martian" / "config.json").read_text())
    config |= {
        "model_type": "martian",
        "architectures": ["Martian"],
        "auto_map": {"AutoConfig": "red.MartianConfig", "AutoModelForCausalLM": "red.Martian"},
    }
    (tmp_path / "martian" / "config.json").write_text(json.dumps(config))
    (tmp_path / "martian" / "red.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    for name, rows in {"forget": conftest.rows()[:4], "retain": conftest.rows()[4:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "--attacks", "prompt", "--template", "none", "--set", "bf16=false"],
        ["compare", "records", "--methods", "grad-ascent", "--template", "none", "--set", "bf16=false",
         "--set", "max_steps=1", "--retain", "{place}/retain.jsonl"],
        ["neighbours", "--template", "none", "--k", "1", "--margin", "0", "--retain", "{place}/retain.jsonl",
         "--curriculum", "direct,choice,correction,aside,verify"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_code_of_a_model_runs_only_where_it_is_let(words, place, capsys):
    given = [word.replace("{place}", str(place)) for word in words]
    given += ["--model", place / "martian", "--forget", place / "forget.jsonl", "--output", place / "out"]
    assert call(*given) == 2
    assert "give --trust-remote-code to let it run" in " ".join(capsys.readouterr().err.split())
    assert not (place / "ran").exists()
    status = call(*given, "--trust-remote-code", "--overwrite")
    said = " ".join(capsys.readouterr().err.split())
    assert status == 0 or "No question tells a neighbour apart" in said, said
    assert (place / "ran").exists()
