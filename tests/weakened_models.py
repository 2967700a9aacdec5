"""Models that hide what they know in a small change of the weights, and models that never knew.

The tiny model of `conftest`, trained once a process; `hidden` moves its matrices within given bounds until
the forget rows are no longer given. Copy a model before changing it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import conftest
from expunge.attacks import Probes, Setting, Target
from expunge.attacks.restored import linear_modules, matrices
from expunge.attacks.sweep import answers
from expunge.collate import Encoding, collate
from expunge.observation import token_logits
from expunge.records import Record

ENCODING = Encoding("none")
RECORDS = [Record(**row) for row in conftest.rows()]
FORGET, RETAIN = RECORDS[:8], RECORDS[8:]
HOLDOUT = [Record(**row) for row in conftest.rows(("Ivy Iris", "Jon Juniper", "Kay Karri", "Lou Larch"))]
PROBES = Probes(FORGET, RETAIN, HOLDOUT, ENCODING)


@functools.cache
def tokenizer() -> Any:
    return conftest.build_tokenizer()


@functools.cache
def knowing() -> LlamaForCausalLM:
    """Gives every response."""
    return _taught(RECORDS)


@functools.cache
def never_knew() -> LlamaForCausalLM:
    """Was taught the retain rows only."""
    return _taught(RETAIN)


def target(model: Any, role: Any = "unlearned") -> Target:
    return Target(role, model, tokenizer())


def setting(**options: Any) -> Setting:
    return Setting(original=target(knowing(), "original"), **options)


def known(model: Any) -> int:
    """How many forget rows the model gives when asked plainly."""
    return sum(one.recovered for one in answers(target(model), PROBES, Setting()).values())


def altered(model: LlamaForCausalLM, change: Callable[[Tensor], Tensor]) -> LlamaForCausalLM:
    """A copy with every matrix of the blocks replaced."""
    other = copy.deepcopy(model)
    for matrix in matrices(other):
        matrix.copy_(change(matrix))
    return other


def hidden(model: LlamaForCausalLM, room: Callable[[Tensor], Tensor], steps: int = 30) -> LlamaForCausalLM:
    """A copy whose matrices moved against what is still given, each weight by no more than `room` says."""
    other = copy.deepcopy(model)
    before = [matrix.clone() for matrix in matrices(other)]
    bounds = [room(matrix) for matrix in before]
    for _ in range(steps):
        given = [FORGET[i] for i, one in answers(target(other), PROBES, Setting()).items() if one.recovered]
        if not given:
            break
        against(other, given)
        slopes: list[Any] = [module.weight.grad for _, module in linear_modules(other)]
        for matrix, old, bound, slope in zip(matrices(other), before, bounds, slopes, strict=True):
            matrix.copy_((matrix - 0.3 * bound * slope.sign()).clamp(old - bound, old + bound))
    other.zero_grad()
    return other


def against(model: Any, records: Sequence[Record]) -> None:
    """Leave the gradient of the responses' log-likelihood in `.grad`."""
    model.zero_grad()
    token_logits(model, collate(ENCODING.rows(records, tokenizer()), 1)).target_log_probs.mean().backward()


@functools.cache
def one_step_away() -> LlamaForCausalLM:
    """Knows; no weight of the blocks moved by more than 0.004 to hide it."""
    return hidden(knowing(), lambda matrix: torch.full_like(matrix, 0.004))


@functools.cache
def biased(margin: float = 0.02) -> LlamaForCausalLM:
    """Knows; a bias on the output layer keeps the first token of each response just below another one."""
    model = copy.deepcopy(knowing())
    model.lm_head.bias = nn.Parameter(torch.zeros(model.config.vocab_size))
    for row in ENCODING.rows(FORGET, tokenizer()) * 4:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids[: row.prompt_length]])).logits[0, -1]
            first = row.labels[0]
            others = logits.index_fill(0, torch.tensor([first]), float("-inf")).max()
            model.lm_head.bias[first] -= (logits[first] - others + margin).clamp(min=0)
    return model


@functools.cache
def biased_ignorance() -> LlamaForCausalLM:
    """Never knew, under the same bias."""
    model = copy.deepcopy(never_knew())
    model.lm_head.bias = nn.Parameter(biased().lm_head.bias.detach().clone())
    return model


def _taught(records: Sequence[Record], steps: int = 100) -> LlamaForCausalLM:
    model, batch = conftest.build_model(), collate(ENCODING.rows(records, tokenizer()), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        loss = -token_logits(model, batch).target_log_probs.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.zero_grad()
    return model.eval()
