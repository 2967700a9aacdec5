"""The optimizer's step a part at a time: the same step, the same angles, and no copy of the parameters."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import conftest
from expunge import heap, walk
from expunge.arguments import UnlearningArguments
from expunge.methods import ngdiff
from expunge.unlearner import Unlearner

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(walk, "SMALLEST", 0)


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_by_parts_is_the_step(build):
    whole, parted = conftest.build_model(), conftest.build_model()
    optimizers = build(whole.parameters()), build(parted.parameters())
    assert walk.separable(optimizers[1])
    for step in range(3):
        torch.manual_seed(step)
        for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        before = [p.detach().clone() for p in whole.parameters()]
        optimizers[0].step()
        falls = list(walk.falls(optimizers[1], list(parted.parameters())))
        for old, new, fall in zip(before, whole.parameters(), falls, strict=True):
            assert torch.equal(fall, old - new.detach())
    optimizers[1].step()  # the Trainer's own: nothing is left to move
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)
    states = [list(optimizer.state.values()) for optimizer in optimizers]
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)


def test_parameters_without_a_gradient_rest():
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))]
    parameters[1].grad = torch.ones(4)
    falls = list(walk.falls(torch.optim.SGD(parameters, lr=0.5), parameters))
    assert [float(fall.sum()) for fall in falls] == [0.0, 2.0]


def test_parts_are_consecutive_and_small():
    parameters = list(conftest.build_model().parameters())
    parts = list(walk._parts(parameters))
    assert [k for part in parts for k in part] == list(range(len(parameters)))
    most = sum(p.nbytes for p in parameters) // walk.PARTS
    assert all(len(part) == 1 or sum(parameters[k].nbytes for k in part) <= most for part in parts)


def test_an_optimizer_that_mixes_parameters_is_not_parted():
    assert not walk.separable(torch.optim.LBFGS([nn.Parameter(torch.ones(2))]))


def unlearner(tokenizer, folder, **settings) -> Unlearner:
    given = {"max_steps": 6, "learning_rate": 1e-3, "check_every": 0, "save_strategy": "no"} | settings
    args = UnlearningArguments(output_dir=str(folder), bf16=False, template="none", use_cpu=True, **given)
    rows = conftest.rows()
    return Unlearner(
        conftest.build_model(), args, ngdiff(), tokenizer, forget_dataset=rows[:6], retain_dataset=rows[6:]
    )


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_weights_and_log_are_those_of_a_run_that_keeps_a_copy(tokenizer, tmp_path, monkeypatch, clip):
    runs = []
    for parted in (True, False):
        monkeypatch.setattr(walk, "separable", lambda optimizer, parted=parted: parted)
        run = unlearner(tokenizer, tmp_path, max_grad_norm=clip)
        run.train()
        runs.append(run)
    for one, other in zip(*(run.trained.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)
    logs = [[step.model_dump(exclude={"seconds"}) for step in run.history] for run in runs]
    assert logs[0] == logs[1]
    assert all(step["update_cosines"] for step in logs[0])


class Held(TrainerCallback):
    """Counts the bytes of all tensors whenever the optimizer moves parameters, in models."""

    def __init__(self, model: nn.Module) -> None:
        self.model = sum(p.nbytes for p in model.parameters())
        self.start, self.counts = 0.0, []

    def on_train_begin(self, args, state, control, optimizer=None, **_):
        self.start = self.count()
        optimizer.optimizer.register_step_pre_hook(lambda *_: self.counts.append(self.count() - self.start))

    def count(self) -> float:
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
        grads = [t.grad for t in tensors if t.is_leaf and t.grad is not None]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*tensors, *grads]}
        return sum(sizes.values()) / self.model


@pytest.mark.parametrize(("parted", "most"), [(True, 4.5), (False, 5.2)])
def test_no_copy_of_the_parameters_stands_beside_the_gradients(
    tokenizer, tmp_path, monkeypatch, parted, most
):
    """Two moments, two gradients and a part; with a copy it is one model more."""
    monkeypatch.setattr(walk, "separable", lambda optimizer: parted)
    run = unlearner(tokenizer, tmp_path)
    held = Held(run.trained)
    run.add_callback(held)
    run.train()
    assert most - 0.7 < max(held.counts) < most


def test_freed_memory_is_kept_until_it_is_given_back():
    """Blocks freed under one that stays: the C library keeps them, and gives them back when asked."""
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc only")
    code = f"""
import ctypes, importlib.util, os
spec = importlib.util.spec_from_file_location("heap", {heap.__file__!r})
heap = importlib.util.module_from_spec(spec); spec.loader.exec_module(heap)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if not heap.keep_freed_memory():
    raise SystemExit(77)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = (
    ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t])
blocks = [libc.malloc(4 << 20) for _ in range(17)]
for block in blocks:
    libc.memset(block, 1, 4 << 20)
for block in blocks[:-1]:
    libc.free(block)
kept = resident()
assert heap.give_back()
assert kept - resident() > 50 << 20, (kept, resident())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode == 77:
        pytest.skip("the C library takes no such setting")
    assert found.returncode == 0, found.stderr
