"""One process, two under DDP and two under FSDP2 give the same training, and the same evaluation.

One launch of two gloo processes runs every case both ways (`parity_run.py`); one process runs them here, with
twice as many micro-batches per step. AdamW, fp32, 20 optimizer steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from parity_run import BF16, CASES, REPLICATED, STEPS, TIGHT, Case, found, metrics, teach, train
from test_distributed import launch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

LABELS = {case.label: case for case in [*CASES, *REPLICATED]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """A folder with what each of two ranks found."""
    folder = tmp_path_factory.mktemp("parity")
    launch("parity_run.py", str(folder))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    return {label: found(train(folder, case)) for label, case in LABELS.items()}


def apart(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Largest relative distance of a parameter."""
    return max(float((left[n] - p).norm() / p.norm().clamp(min=1e-30)) for n, p in right.items() if p.any())


@pytest.mark.parametrize(
    ("way", "label"), [("fsdp", case.label) for case in CASES] + [("ddp", case.label) for case in REPLICATED]
)
def test_same_training(way, label, ranks, alone):
    first, second = (torch.load(ranks / f"{way}-{label}-{rank}.pt", weights_only=False) for rank in (0, 1))
    expected = alone[label]
    assert first["sharded"] == (way == "fsdp")
    assert len(expected["rates"]) == (STEPS if LABELS[label].recipe != TIGHT else 4)
    assert apart(first["parameters"], expected["parameters"]) < LABELS[label].within
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name])
    assert first["rates"] == second["rates"] == pytest.approx(expected["rates"], rel=1e-5)
    for key in ("losses", "weights", "norms", "cosines"):
        for a, b, c in zip(first[key], second[key], expected[key], strict=True):
            assert a == b
            assert a == pytest.approx(c, rel=1e-3, abs=1e-5)
    assert [probe[2] for probe in first["probes"]] == [probe[2] for probe in expected["probes"]]
    assert first["stop"] == expected["stop"]
    assert first["sharpness"] == second["sharpness"] == expected["sharpness"]


@pytest.mark.parametrize("case", BF16, ids=lambda case: case.label)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_bf16_over_fp32_weights(way, case, ranks, tmp_path):
    """Autocast rounds alike everywhere; a cast that outlives its forward pass costs FSDP2 its gradient."""
    first, second = (
        torch.load(ranks / f"{way}-{case.label}-{rank}.pt", weights_only=False) for rank in (0, 1)
    )
    expected = found(train(tmp_path, case))
    assert apart(first["parameters"], expected["parameters"]) < case.within
    for name, parameter in first["parameters"].items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, second["parameters"][name])
    for a, b in zip(first["losses"], expected["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_cases_move_the_model_and_measure(alone):
    """Agreement would mean nothing had the runs done nothing."""
    start = alone[f"{TIGHT}-full-1"]["parameters"]
    assert apart(alone["ngdiff-full-1"]["parameters"], start) > 1e-2
    assert len(set(alone["ngdiff-gen-full-1"]["rates"])) > 2
    assert alone[f"{TIGHT}-full-1"]["stop"].restored_step == 0


def test_repeats_are_bit_identical(alone, tmp_path):
    for case in (Case("ngdiff"), Case("npo", lora=True)):
        again = found(train(tmp_path, case))
        for name, parameter in alone[case.label]["parameters"].items():
            assert torch.equal(parameter, again["parameters"][name])
        assert again["losses"] == alone[case.label]["losses"]


def test_same_metrics_and_exact_sharded_resume(ranks):
    expected = metrics(teach())
    assert len(expected) > 8
    assert sum(0.01 < (value or 0.0) < 0.99 for value in expected.values()) > 3
    for rank in (0, 1):
        outcome = json.loads((ranks / f"outcome-{rank}.json").read_text())
        assert outcome["resumed"]
        for way in ("metrics, shared", "metrics, sharded"):
            assert outcome[way] == pytest.approx(expected, abs=1e-9, nan_ok=True)
