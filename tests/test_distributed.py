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


@pytest.mark.parametrize("method", ["ngdiff-gen", "grad-diff"])
def test_two_ranks_equal_two_micro_batches(method, tmp_path):
    """Token counts and GeN's losses are reduced over ranks; a local mean or a local η would differ."""
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
        "--standalone",
    ]
    done = subprocess.run(
        [*command, str(here / "distributed_run.py"), str(tmp_path), method],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = train(tmp_path / "alone", method, accumulation=2)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["rates"] == ranks[1]["rates"]
    assert ranks[0]["rates"] == pytest.approx([step.learning_rate for step in alone.history], rel=1e-4)
    for a, b in zip(ranks[0]["losses"], alone.history, strict=True):
        assert a == pytest.approx(b.losses, rel=1e-4)
    for rank in (0, 1):
        weights = torch.load(tmp_path / f"rank{rank}.pt")
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
