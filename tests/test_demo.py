"""The demonstration from end to end, with a tiny model in place of the real one."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaForCausalLM

import conftest
from expunge import cli, terminal
from expunge.record import read_record


@pytest.fixture(scope="module")
def roomy(tmp_path_factory, tokenizer):
    """The tiny model with a context that holds a biography in its small vocabulary."""
    folder = tmp_path_factory.mktemp("roomy")
    config = conftest.build_model().config
    config.max_position_embeddings = 512
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_demo_leaves_a_world_a_model_and_the_evidence(roomy, tmp_path, capsys):
    out = tmp_path / "demo"
    words = ["demo", "--output", str(out), "--model", str(roomy), "--seed", "3", "--control", "--json"]
    assert terminal.guarded(lambda: cli.app(words, exit_on_error=False, print_error=False)) == 0
    summary = json.loads(capsys.readouterr().out)
    record = read_record(out)
    assert summary["kind"] == record.kind == "demo"
    assert set(record.evaluations) == {"before", "after", "control"}
    assert set(record.evaluations["after"].splits) == {"forget", "retain", "holdout"}
    assert record.seed == 3
    assert (out / "model" / "model.safetensors").is_file()
    assert "<script" not in (out / "report.html").read_text()
    rows = [json.loads(line) for line in (out / "data" / "forget.jsonl").read_text().splitlines()]
    assert len(rows) == record.data["forget"].rows
    people = {
        name: {
            json.loads(line)["person"] for line in (out / "data" / f"{name}.jsonl").read_text().splitlines()
        }
        for name in ("forget", "retain", "holdout")
    }
    assert not people["forget"] & people["retain"] | people["forget"] & people["holdout"]
