"""What the engine does not have is refused, whether settings ask for it or a launcher's environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import ParallelismConfig

from expunge import UnlearningArguments, terminal
from expunge.cli import app
from expunge.launch import check_launch


def arguments(folder: Path, **settings) -> UnlearningArguments:
    return UnlearningArguments(output_dir=str(folder), use_cpu=True, **{"bf16": False} | settings)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deepspeed_is_refused_with_the_alternative(stage, tmp_path):
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    for given in ({"zero_optimization": {"stage": stage}}, str(file)):
        with pytest.raises(ValueError, match=r"`deepspeed` must be left out.*Use FSDP2"):
            arguments(tmp_path, deepspeed=given)


@pytest.mark.parametrize("sizes", [{"cp_size": 2}, {"sp_size": 2}], ids=str)
def test_sequences_are_not_split_over_processes(sizes, tmp_path):
    with pytest.raises(ValueError, match=r"`parallelism_config` must leave sequences whole.*max_length"):
        arguments(tmp_path, parallelism_config=ParallelismConfig(**sizes))


@pytest.mark.parametrize(
    "asked", [{"torch_compile": True}, {"torch_compile_backend": "eager"}, {"torch_compile_mode": "default"}]
)
def test_a_model_compiled_as_a_whole_is_refused(asked, tmp_path):
    with pytest.raises(ValueError, match=r"`torch_compile` must be left out.*hook"):
        arguments(tmp_path, **asked)


LAUNCHED = [
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend must be no: .*hook.*; got INDUCTOR"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision must be bf16 or no .*; got fp16. .*bf16=true"),
    ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision must be bf16 or no .*; got fp8"),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "must be that of the settings; got bf16 .*set bf16=true"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "`deepspeed` must be left out.*Use FSDP2"),
    (
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"},
        "`parallelism_config` must leave sequences whole.*cp_size=2",
    ),
]


@pytest.mark.parametrize(("launcher", "message"), LAUNCHED, ids=lambda value: str(value)[:40])
def test_a_launcher_is_refused_what_settings_are(launcher, message, tmp_path, monkeypatch):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path)


def test_what_a_launcher_sets_when_nothing_is_asked_of_it_is_no_wish(tmp_path):
    plain = {
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
        "PARALLELISM_CONFIG_CP_SIZE": "2",
    }
    for bf16 in (False, True):
        check_launch(arguments(tmp_path, bf16=bf16), plain)
    check_launch(arguments(tmp_path, bf16=True), {"ACCELERATE_MIXED_PRECISION": "bf16"})


@pytest.mark.parametrize("setting", ["deepspeed=zero3.json", "torch_compile=true"])
def test_the_command_line_refuses_in_one_line_before_anything_is_read(setting, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["--forget", "absent.jsonl", "--model", "absent", "--output", str(out), "--set", setting]
    assert terminal.guarded(lambda: app(["run", *words], exit_on_error=False, print_error=False)) == 2
    told = capsys.readouterr().err
    assert told.count("expunge:") == 1
    assert f"`{setting.partition('=')[0]}` must be left out" in told
    assert "Traceback" not in told
    assert not out.exists()
