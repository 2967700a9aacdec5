"""Two ranks (gloo) give the update of one process, and every rank the same learning rate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distributed_run import train

METHODS = ("ngdiff-gen", "grad-diff", "ngdiff", "preference", "divergence", "selected")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """A folder with what each of two ranks found, for every method, from one launch."""
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(here / "distributed_run.py"), str(folder), *METHODS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


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
