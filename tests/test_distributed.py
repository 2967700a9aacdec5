"""Two ranks (gloo) give the update of one process and the tables of one, each with a share of the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distributed_run import train
from scoring_run import found

METHODS = ("ngdiff-gen", "grad-diff", "ngdiff", "pdu", "preference", "divergence", "selected", "hardened")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """A folder with what each of two ranks found, for every method, from one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    launch("distributed_run.py", str(folder), *METHODS)
    return folder


def launch(script: str, *words: str) -> None:
    """Run a script of this folder on two ranks."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(here / script), *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_two_micro_batches(method, ranks, tmp_path):
    """Token counts and GeN's losses are reduced over ranks; a local mean or a local η would differ."""
    alone = train(tmp_path, method, accumulation=2)
    found = [json.loads((ranks / f"{method}-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0]["rates"] == found[1]["rates"]
    assert found[0]["rates"] == pytest.approx([step.learning_rate for step in alone.history], rel=1e-4)
    for a, b in zip(found[0]["losses"], alone.history, strict=True):
        assert a == pytest.approx(b.losses, rel=1e-4)
    for rank in (0, 1):
        weights = torch.load(ranks / f"{method}-{rank}.pt")
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


def test_two_ranks_share_the_passes(tmp_path):
    """Nothing is done twice, and both ranks get all of it."""
    launch("scoring_run.py", str(tmp_path))
    alone = found(None)
    ranks = [json.loads((tmp_path / f"scoring-{rank}.json").read_text()) for rank in (0, 1)]
    for way in ("shared", "wrapped", "fresh", "kept"):
        for rank in ranks:
            ours = rank[way]
            assert ours["texts"] == alone["texts"]
            for name in ("log_probs", "deviations"):
                for a, b in zip(ours[name], alone[name], strict=True):
                    assert a == pytest.approx(b, abs=1e-5)
            assert ours["norms"] == pytest.approx(alone["norms"], rel=1e-5)
            assert ours["progress"] == 0
        done = [rank[way]["forwards"] for rank in ranks]
        if way == "kept":
            assert done == [0, 0]
        else:
            assert 0.3 * alone["forwards"] < min(done) <= max(done) < 0.75 * alone["forwards"]
