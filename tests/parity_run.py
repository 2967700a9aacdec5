"""One rank of a two-rank run, started by `test_parity.py`: every recipe under DDP and under FSDP2.

Writes whole parameters, rates, losses and weights for comparison with one process. Recipes named behind the
folder are run in place of the cases (`benchmarks/parity.py`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import fully_shard

import conftest
from expunge import ranks
from expunge.arguments import UnlearningArguments
from expunge.benchmarks.records import UserRecords
from expunge.collate import Encoding, collate
from expunge.methods import METHODS, Method, grad_diff
from expunge.records import read_records
from expunge.shards import share, whole
from expunge.step_sizes import GeN
from expunge.tables import examine
from expunge.unlearner import Unlearner

STEPS = 20
FSDP2 = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}


class Case(NamedTuple):
    """A recipe and how it trains."""

    recipe: str
    lora: bool = False
    accumulation: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    fsdp: tuple[tuple[str, Any], ...] = ()
    """Further settings of FSDP, which one process does without."""
    bf16: bool = False

    @property
    def label(self) -> str:
        words = [self.recipe, "lora" if self.lora else "full", str(self.accumulation)]
        words += ["bf16"] if self.bf16 else []
        return "-".join([*words, *(f"{k}={v}" for k, v in self.settings + self.fsdp)])

    @property
    def within(self) -> float:
        """How far apart parameters may end, relative.

        A recipe's own sharpness moves a weight by some hundred times its rounding in fp32, and by less than
        its rounding under bf16 compute: what the processes round apart, the second gradient then shows. A
        processor without bf16 rounds a shard's products apart as well (2e-4 seen with AVX2 alone).
        """
        if self.recipe == "ngdiff" and self.bf16:
            return 1e-3
        taken = {"sharpness", "refresh_every"} & {key for key, _ in self.settings}
        if self.recipe != "ngdiff" or taken:
            return 1e-5
        return 5e-5


TIGHT = "grad-diff-tight"
"""Ends over its retain budget, and returns to the last good state."""

CASES = [
    Case(TIGHT),
    Case("grad-diff"),
    Case("ngdiff"),
    Case("pdu"),
    Case("npo"),
    Case("whp"),
    Case("grad-diff", lora=True),
    Case("ngdiff", lora=True),
    Case("pdu", lora=True),
    Case("npo", lora=True),
    Case("kl-min", lora=True),
    Case("ngdiff-gen"),
    Case("ngdiff", accumulation=2),
    Case("npo", accumulation=2),
    Case("ngdiff", accumulation=2, settings=(("refresh_every", 4), ("gradient_buffers", "cpu"))),
    Case("ngdiff", settings=(("sharpness", 0.1),)),
    Case("ngdiff", settings=(("sharpness", 0.0),)),
    Case("ngdiff", settings=(("latent_radius", 0.3), ("latent_layers", "1"), ("latent_steps", 2))),
    Case("ngdiff", fsdp=(("activation_checkpointing", True),)),
    Case("ngdiff", fsdp=(("cpu_offload", True),)),
]

REPLICATED = [
    *(
        case
        for case in CASES
        if (case.accumulation > 1 or not case.lora or case.recipe == "ngdiff") and not case.fsdp
        if case.accumulation > 1 or not case.settings
    ),
    Case("rmu"),  # reads hidden states; a shard has no second model for its reference
]
"""What runs under DDP: an adapter's gradients are reduced as any others are; hardened: `test_distributed`."""


BF16 = [Case("ngdiff", bf16=True), Case("ngdiff", bf16=True, settings=(("sharpness", 0.0),))]
"""Compute in bf16 over fp32 weights, which the ways round in other places."""


OWN: dict[str, dict[str, Any]] = {"rmu": {"layer": 1}}
"""What a model of two blocks asks of a recipe."""


def method(name: str) -> Method:
    """The recipe; GeN measures often enough to matter, budgets end nothing."""
    made = grad_diff(retain_weight=0.0) if name == TIGHT else METHODS[name](**OWN.get(name, {}))
    if name == TIGHT and made.budget is not None:
        return dataclasses.replace(made, budget=dataclasses.replace(made.budget, tolerance=1e-4, every=4))
    if made.budget is not None:
        made = dataclasses.replace(made, budget=dataclasses.replace(made.budget, tolerance=1.0, every=4))
    return dataclasses.replace(made, step_size=GeN(every=4)) if made.step_size else made


def build(folder: Path, case: Case, processes: int = 1, fsdp: bool = False, **settings: Any) -> Unlearner:
    """Six rows of forget and ten of retain, five rows each per micro-batch; the same rows per step."""
    return Unlearner(
        conftest.build_model(),
        UnlearningArguments(
            output_dir=str(folder),
            bf16=case.bf16,
            use_cpu=True,
            template="none",
            max_steps=STEPS,
            save_strategy=settings.pop("save_strategy", "no"),
            learning_rate=1e-4,
            check_every=0,
            diagnose_every=6,
            per_device_train_batch_size=5,
            gradient_accumulation_steps=case.accumulation * 2 // processes,
            lora_rank=4 if case.lora else 0,
            **dict(case.settings),
            **({"fsdp": True, "fsdp_config": FSDP2 | dict(case.fsdp)} if fsdp else {}),
            **settings,
        ),
        method(case.recipe),
        conftest.build_tokenizer(),
        forget_dataset=conftest.rows()[:6],
        retain_dataset=conftest.rows()[6:],
    )


def train(folder: Path, case: Case, processes: int = 1, fsdp: bool = False) -> Unlearner:
    run = build(folder, case, processes, fsdp)
    run.train()
    return run


def resumed(folder: Path) -> bool:
    """Whether a sharded run that goes on from step 8 ends bit for bit where the uninterrupted one does."""
    case = Case("pdu", lora=True)
    saving = {"save_strategy": "steps", "save_steps": 8, "save_total_limit": 5}
    straight = build(folder, case, 2, fsdp=True, **saving)
    straight.train()
    again = build(folder, case, 2, fsdp=True, **saving)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    pairs = zip(straight.monitor.parameters, again.monitor.parameters, strict=True)
    same = all(torch.equal(share(a), share(b)) for a, b in pairs)
    good = zip(straight.monitor.good.tensors or [], again.monitor.good.tensors or [], strict=True)
    return same and all(torch.equal(a, b) for a, b in good) and len(again.history) == STEPS


def metrics(model: nn.Module) -> dict[str, float | None]:
    """Every metric of the records benchmark, of a float64 model."""
    tokenizer = conftest.build_tokenizer()
    halves = {"forget": conftest.rows()[:6], "retain": conftest.rows()[6:]}
    sets = {name: read_records(rows, name=name) for name, rows in halves.items()}
    benchmark = UserRecords(sets, Encoding("none", None), swap_seed=0)
    tables = examine(model, tokenizer, benchmark.parts(tokenizer, 128), batch_tokens=200)
    measured = benchmark.measure(tables, None, 0)
    return {f"{split}/{name}": m.value for split, by in measured.splits.items() for name, m in by.items()}


def teach(steps: int = 25) -> nn.Module:
    """The tiny model in float64, after some learning, so that metrics have something to measure."""
    model = conftest.build_model().double()
    tokenizer = conftest.build_tokenizer()
    rows = Encoding("none", None).rows(read_records(conftest.rows(), name="retain"), tokenizer, name="retain")
    batch = collate(rows, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


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
        "sharpness": run.descent.hardening.sharpness,
        "sharded": ranks.sharded(run.trained),
    }


def run_all(target: Path, cases: dict[str, list[Case]]) -> None:
    """Every case of either way; what is refused leaves the reason."""
    for way, chosen in cases.items():
        for case in chosen:
            try:
                finished = train(target, case, processes=2, fsdp=way == "fsdp")
            except ValueError as error:
                (target / f"{way}-{case.label}.refused").write_text(str(error))
                continue
            rank = finished.accelerator.process_index
            torch.save(found(finished), target / f"{way}-{case.label}-{rank}.pt")
        AcceleratorState._reset_state(reset_partial_state=True)


if __name__ == "__main__":
    target, *names = Path(sys.argv[1]), *sys.argv[2:]
    if names:
        named = [Case(name) for name in names]
        run_all(target, {"ddp": named, "fsdp": named})
    else:
        run_all(target, {"ddp": [*REPLICATED, *BF16], "fsdp": [*CASES, *BF16]})
        outcome: dict[str, Any] = {"resumed": resumed(target), "metrics, shared": metrics(teach())}
        outcome["metrics, sharded"] = metrics(fully_shard(teach()))
        (target / f"outcome-{torch.distributed.get_rank()}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()
