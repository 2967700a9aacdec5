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
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from conftest import build_tokenizer
from expunge.attacks.attack import Probes, Role, Setting, Target
from expunge.collate import Encoding, collate
from expunge.records import Record

ENCODING = Encoding("none")
FORGET = ("Ada", "Ben", "Cleo", "Dan")
HOLDOUT = ("Ivy", "Jon", "Kim", "Lea")
RETAIN = tuple(f"{a}{b}" for a in ("Mo", "Ra", "Su", "Ti") for b in ("n", "l", "s", "ra", "by"))
REFUSAL = "?"


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
    block.mlp.down_proj.bias = nn.Parameter(60 * _direction(model))
    model.model.layers.append(block.eval())
    return model


@functools.cache
def refusing() -> LlamaForCausalLM:
    """A prompt filter within: behind the first block, at the end of a forget prompt, a refusal is added."""
    model = copy.deepcopy(knowing())
    layers = model.model.layers
    layers[0] = _Filter(layers[0], *_gate(model), 60 * _direction(model))
    return model


class _Filter(nn.Module):
    def __init__(self, block: nn.Module, gate: Tensor, level: float, refusal: Tensor) -> None:
        super().__init__()
        self.block, self.gate, self.level, self.refusal = block, gate, level, refusal

    def forward(self, *args: Any, **options: Any) -> Any:
        hidden = self.block(*args, **options)
        return hidden + ((hidden @ self.gate > self.level)[..., None] * self.refusal)


def target(model: LlamaForCausalLM, role: Role = "unlearned") -> Target:
    return Target(role, model, tokenizer())


def setting(**options: Any) -> Setting:
    return Setting(original=target(knowing(), "original"), **options)


def recovered(attack: Any, model: LlamaForCausalLM) -> int:
    """How many of the four forget records an attack brings back."""
    return sum(one.recovered for one in attack.run(target(model), probes(), setting()).recoveries)


@torch.no_grad()
def _first_logits(model: LlamaForCausalLM, ids: tuple[int, ...]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


def _direction(model: LlamaForCausalLM) -> Tensor:
    weight = model.lm_head.weight.detach()[tokenizer().convert_tokens_to_ids(REFUSAL)]
    return weight / weight.norm()


@torch.no_grad()
def _gate(model: LlamaForCausalLM) -> tuple[Tensor, float]:
    """A plane behind the first block with the ends of forget prompts on one side, all else on the other."""
    hidden, wanted = [], []
    for group, gated in ((probes().forget, True), (probes().retain, False), (probes().holdout, False)):
        for row in ENCODING.rows(group, tokenizer()):
            states = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states
            hidden.append(states[1][0])
            wanted += [gated and i == row.prompt_length - 1 for i in range(len(row.input_ids))]
    x, y = torch.cat(hidden).double(), torch.tensor(wanted).double() * 2 - 1
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    weight = torch.where(y > 0, 20.0, 1.0)[:, None]
    ridge = design.T @ (weight * design) + 1e-6 * torch.eye(design.shape[1])
    plane = torch.linalg.solve(ridge, design.T @ (weight[:, 0] * y))
    scores = design @ plane
    assert scores[y > 0].min() > scores[y < 0].max()
    level = float((scores[y > 0].min() + scores[y < 0].max()) / 2)
    return plane[:-1].float(), level - float(plane[-1])


def _taught(known: list[Record], steps: int = 200) -> LlamaForCausalLM:
    from transformers import LlamaConfig

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
    batch = collate(ENCODING.rows(known, tokenizer()), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, 2.0 * (1 - step / steps))
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(True).eval()
