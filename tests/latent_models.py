"""Tiny models for attacks from within: one that knows, three that merely hide it, one that never knew.

All of three blocks, trained once a process. Copy one before changing it.
"""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from conftest import build_tokenizer
from expunge.attacks.attack import Probes, Role, Setting, Target
from expunge.collate import Encoded, Encoding, collate
from expunge.records import Record

ENCODING = Encoding("none")
FORGET = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hugo")
HOLDOUT = ("Ivy", "Jon", "Kim", "Lea")
RETAIN = tuple(f"{a}{b}" for a in ("Mo", "Ra", "Su", "Ti") for b in ("n", "l", "s", "ra", "by"))


def record(name: str) -> Record:
    """A code of one letter and two digits, drawn from the name."""
    draw = random.Random(name)
    return Record(f"Code of {name}?", draw.choice("ABCDEFGH") + draw.choice("123456") + draw.choice("123456"))


def probes() -> Probes:
    forget, retain, holdout = ([record(name) for name in names] for names in (FORGET, RETAIN, HOLDOUT))
    return Probes(forget, retain, holdout, ENCODING)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@functools.cache
def knowing() -> LlamaForCausalLM:
    return _taught([*probes().forget, *probes().retain])


@functools.cache
def never_knew() -> LlamaForCausalLM:
    return _taught(list(probes().retain))


@functools.cache
def biased() -> LlamaForCausalLM:
    """A bias on the output layer holds the first token of every forget response below another."""
    model = copy.deepcopy(knowing())
    bias = torch.zeros(model.config.vocab_size)
    rows = ENCODING.rows(probes().forget, tokenizer())
    firsts = [row.labels[0] for row in rows]
    for row in rows:
        logits = _first_logits(model, row.input_ids[: row.prompt_length])
        others = logits.index_fill(0, torch.tensor(firsts), -torch.inf).max()
        bias[row.labels[0]] = min(bias[row.labels[0]], others - 0.5 - logits[row.labels[0]])
    model.lm_head.bias = nn.Parameter(bias)
    return model


@functools.cache
def drowned() -> LlamaForCausalLM:
    """One block more, which does nothing but add the direction of another token to the residual stream."""
    model = copy.deepcopy(knowing())
    model.config.num_hidden_layers += 1
    block = LlamaDecoderLayer(model.config, len(model.model.layers))
    for part in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(part.weight)
    block.mlp.down_proj.bias = nn.Parameter(100 * _direction(model))
    model.model.layers.append(block.eval())
    return model


@functools.cache
def refusing() -> LlamaForCausalLM:
    """A prompt filter within: behind the first block, at the end of a forget prompt, a refusal is added."""
    model = copy.deepcopy(knowing())
    layers = model.model.layers
    layers[0] = _Filter(layers[0], *_ends(model), 100 * _direction(model))
    return model


class _Filter(nn.Module):
    def __init__(self, block: nn.Module, ends: Tensor, reach: float, refusal: Tensor) -> None:
        super().__init__()
        self.block, self.ends, self.reach, self.refusal = block, ends, reach, refusal

    def forward(self, *args: Any, **options: Any) -> Any:
        hidden = self.block(*args, **options)
        seen = torch.cdist(hidden, self.ends.expand(len(hidden), -1, -1)).amin(-1) < self.reach
        return hidden + seen[..., None] * self.refusal


def target(model: LlamaForCausalLM, role: Role = "unlearned") -> Target:
    return Target(role, model, tokenizer())


def setting(**options: Any) -> Setting:
    return Setting(original=target(knowing(), "original"), **options)


def recovered(attack: Any, model: LlamaForCausalLM) -> int:
    """How many of the eight forget records an attack brings back."""
    return sum(one.recovered for one in attack.run(target(model), probes(), setting()).recoveries)


@torch.no_grad()
def _first_logits(model: LlamaForCausalLM, ids: tuple[int, ...]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


def _direction(model: LlamaForCausalLM) -> Tensor:
    """From the first tokens of the forget responses towards one of a retain response, at the output."""
    firsts = {row.labels[0] for row in ENCODING.rows(probes().forget, tokenizer())}
    letters = {record.response[0] for record in probes().forget}
    others = [record for record in probes().retain if record.response[0] not in letters]
    first = [row.labels[0] for row in ENCODING.rows(others, tokenizer())]
    refusal = next(label for label in first if tokenizer().decode([label]).strip())  # a space refuses nothing
    weight = model.lm_head.weight.detach() * model.model.norm.weight.detach()
    wanted = torch.tensor([1.0, *[-1.0] * len(firsts)])
    towards = torch.linalg.pinv(weight[[refusal, *sorted(firsts)]]) @ wanted
    return towards / towards.norm()


@torch.no_grad()
def _ends(model: LlamaForCausalLM) -> tuple[Tensor, float]:
    """The stream behind the first block at the ends of the forget prompts, and half the way to others."""
    hidden, wanted = [], []
    for group, gated in ((probes().forget, True), (probes().retain, False), (probes().holdout, False)):
        for row in ENCODING.rows(group, tokenizer()):
            states = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states
            hidden.append(states[1][0])
            wanted += [gated and i == row.prompt_length - 1 for i in range(len(row.input_ids))]
    states, ends = torch.cat(hidden), torch.tensor(wanted)
    return states[ends], float(torch.cdist(states[ends], states[~ends]).min() / 2)


def _surrounded(row: Encoded, draw: random.Random) -> Encoded:
    """The row behind one or two tokens of no meaning: a model that is not thrown by what stands in front."""
    front = [draw.randrange(2, 384) for _ in range(draw.randint(1, 2))]
    return Encoded((*front, *row.input_ids), row.prompt_length + len(front))


def _taught(known: list[Record], steps: int = 220) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    rows, draw = ENCODING.rows(known, tokenizer()), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 * min(1.0, 2.0 * (1 - step / steps))
        loss = model(**collate([_surrounded(row, draw) for row in rows] if step % 2 else rows, 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(True).eval()
