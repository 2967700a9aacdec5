"""One rank of a two-rank run, started by `test_parity.py`: every recipe under DDP and under FSDP2.

Writes whole parameters, rates, losses and weights for comparison with one process.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState

import conftest
from expunge import ranks
from expunge.arguments import UnlearningArguments
from expunge.methods import METHODS, Method
from expunge.shards import whole
from expunge.step_sizes import GeN
from expunge.unlearner import Unlearner

STEPS = 20
FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


class Case(NamedTuple):
    """A recipe and how it trains."""

    recipe: str
    lora: bool = False
    accumulation: int = 1
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        words = [self.recipe, "lora" if self.lora else "full", str(self.accumulation)]
        return "-".join([*words, *(f"{key}={value}" for key, value in self.settings)])


CASES = [
    Case("grad-diff"),
    Case("ngdiff"),
    Case("pdu"),
    Case("npo"),
    Case("grad-diff", lora=True),
    Case("ngdiff", lora=True),
    Case("pdu", lora=True),
    Case("npo", lora=True),
    Case("kl-min", lora=True),
    Case("ngdiff-gen"),
    Case("ngdiff", accumulation=2),
    Case("grad-diff", accumulation=2),
    Case("ngdiff", accumulation=2, settings=(("refresh_every", 4), ("gradient_buffers", "cpu"))),
    Case("ngdiff", settings=(("gradient_checkpointing", True),)),
]


def method(name: str) -> Method:
    """The recipe; GeN measures often enough to matter, budgets end nothing."""
    made = METHODS[name]()
    if made.budget is not None:
        made = dataclasses.replace(made, budget=dataclasses.replace(made.budget, tolerance=1.0, every=4))
    return dataclasses.replace(made, step_size=GeN(every=4)) if made.step_size else made


def train(folder: Path, case: Case, processes: int = 1, fsdp: bool = False) -> Unlearner:
    """Six rows of forget and ten of retain, five rows each per micro-batch; the same rows per step."""
    run = Unlearner(
        conftest.build_model(),
        UnlearningArguments(
            output_dir=str(folder),
            bf16=False,
            use_cpu=True,
            template="none",
            max_steps=STEPS,
            save_strategy="no",
            learning_rate=1e-4,
            check_every=0,
            diagnose_every=6,
            per_device_train_batch_size=5,
            gradient_accumulation_steps=case.accumulation * 2 // processes,
            lora_rank=4 if case.lora else 0,
            **dict(case.settings),
            **(FSDP2 if fsdp else {}),
        ),
        method(case.recipe),
        conftest.build_tokenizer(),
        forget_dataset=conftest.rows()[:6],
        retain_dataset=conftest.rows()[6:],
    )
    run.train()
    return run


def found(run: Unlearner) -> dict[str, Any]:
    """What is compared; every rank must ask."""
    return {
        "parameters": {
            name.replace("_checkpoint_wrapped_module.", ""): whole(p.detach()).clone()
            for name, p in run.trained.named_parameters()
        },
        "rates": [step.learning_rate for step in run.history],
        "losses": [step.losses for step in run.history],
        "weights": [step.weights for step in run.history],
        "norms": [step.gradient_norms for step in run.history],
        "cosines": [step.update_cosines for step in run.history],
        "probes": [(probe.step, probe.retain_loss, probe.decision) for probe in run.monitor.state.probes],
        "stop": run.stop,
        "sharded": ranks.sharded(run.trained),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for way in ("ddp", "fsdp"):
        for case in CASES:
            finished = train(target, case, processes=2, fsdp=way == "fsdp")
            rank = finished.accelerator.process_index
            torch.save(found(finished), target / f"{way}-{case.label}-{rank}.pt")
        AcceleratorState._reset_state(reset_partial_state=True)
    torch.distributed.destroy_process_group()
