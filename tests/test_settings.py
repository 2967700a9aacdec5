"""Settings as words give them; without an output folder nothing that other users share is created."""

from __future__ import annotations

import gc
import stat
import tempfile
from pathlib import Path

import pytest

import conftest
import expunge
from expunge.errors import UsageError
from expunge.run_options import RunOptions
from expunge.settings import arguments


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """An empty folder in place of the machine's temporary one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_run_without_output_has_a_folder_of_its_own(temporary):
    one, other = arguments({}, RunOptions()), arguments({}, RunOptions())
    assert one.output_dir != other.output_dir
    assert {Path(one.output_dir), Path(other.output_dir)} == set(temporary.iterdir())
    assert stat.S_IMODE(Path(one.output_dir).stat().st_mode) == 0o700
    assert one.save_strategy == "no"
    del one, other
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_refused_settings_leave_no_folder(temporary):
    with pytest.raises(UsageError, match="max_steps"):
        arguments({"max_steps": 0}, RunOptions())
    assert list(temporary.iterdir()) == []


def test_an_output_takes_checkpoints(temporary):
    assert arguments({}, RunOptions(output="out")).output_dir == str(Path("out") / "checkpoints")
    assert arguments({"output_dir": "mine"}, RunOptions()).output_dir == "mine"
    assert list(temporary.iterdir()) == []


def test_nothing_is_left_of_a_run_without_output(temporary, model, tokenizer):
    rows = conftest.rows()
    result = expunge.unlearn(
        model, tokenizer, forget=rows[:6], retain=rows[6:], max_steps=1, evaluate=False, bf16=False,
        template="none", check_every=0, seed=0,
    )  # fmt: skip
    assert len(result.record.history) == 1
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_one_layer_may_be_named_like_several():
    """`--set latent_layers=8` arrives as a number."""
    for layers, wanted in ((8, (8,)), ("8,-1", (8, -1))):
        latent = arguments({"latent_radius": 1, "latent_layers": layers}, RunOptions()).hardening().latent
        assert latent is not None
        assert latent.layers == wanted
    with pytest.raises(UsageError, match="latent_layers must be"):
        arguments({"latent_radius": 1, "latent_layers": [8]}, RunOptions())
