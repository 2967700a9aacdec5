"""One rank of a two-rank run, started by `test_distributed.py` through torch.distributed.run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import conftest
import engine_objectives
from expunge.arguments import UnlearningArguments
from expunge.methods import METHODS
from expunge.unlearner import Unlearner

HARDENED = {"sharpness": 0.1, "latent_radius": 0.3, "latent_layers": "1", "latent_steps": 2}


def train(folder: Path, method: str, accumulation: int) -> Unlearner:
    """Six rows of forget and ten of retain, five rows each per micro-batch."""
    run = Unlearner(
        conftest.build_model(),
        UnlearningArguments(
            output_dir=str(folder),
            bf16=False,
            use_cpu=True,
            template="none",
            max_steps=4,
            save_strategy="no",
            learning_rate=1e-2,
            optim="sgd",
            per_device_train_batch_size=5,
            gradient_accumulation_steps=accumulation,
            **(HARDENED if method == "hardened" else {}),
        ),
        (METHODS | engine_objectives.METHODS | {"hardened": METHODS["ngdiff"]})[method](),
        conftest.build_tokenizer(),
        forget_dataset=conftest.rows()[:6],
        retain_dataset=conftest.rows()[6:],
    )
    run.train()
    return run


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name in sys.argv[2:]:
        finished = train(target, name, accumulation=1)
        rank = finished.accelerator.process_index
        torch.save(finished.model.state_dict(), target / f"{name}-{rank}.pt")
        history = {
            "rates": [step.learning_rate for step in finished.history],
            "losses": [step.losses for step in finished.history],
        }
        (target / f"{name}-{rank}.json").write_text(json.dumps(history))
    torch.distributed.destroy_process_group()
