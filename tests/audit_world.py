"""Tiny models for audits: one that learned its people, one that merely hides them, one that never knew them.

Hiding is a bias on the output layer against the first token of every response: asked plainly, the model
cannot begin; given the first tokens, it goes on as ever.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import conftest
import expunge
from expunge.attacks.answers import Question, ask, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.collate import Encoding, encode
from expunge.record import ModelEntry
from expunge.records import Record

KEPT = ("Ada Ash", "Ben Birch")
GONE = ("Cleo Cedar", "Dan Dogwood", "Eve Elm", "Finn Fir", "Gus Gum", "Hal Hazel")
UNSEEN = ("Ivy Iris", "Jon Juniper", "Kim Kauri", "Lea Larch", "Max Maple", "Nia Neem")
RETAIN, FORGET, HOLDOUT = conftest.rows(KEPT), conftest.rows(GONE), conftest.rows(UNSEEN)
QUICK = {"bf16": False, "template": "none", "seed": 0}
ENCODING = Encoding("none")


def records(rows: list[dict[str, str]]) -> list[Record]:
    return [Record(row["prompt"], row["response"]) for row in rows]


def taught(people: tuple[str, ...], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A copy of the tiny model after it has learned some people; taught once for all tests of a process."""
    return copy.deepcopy(_taught(people, tokenizer))


@cache
def _taught(people: tuple[str, ...], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    result = expunge.finetune(
        conftest.build_model(),
        tokenizer,
        data=conftest.rows(people),
        max_steps=250,
        learning_rate=1e-2,
        evaluate=False,
        **QUICK,
    )
    assert result.record.stop.reason == "learned"
    return result.model.eval()


def hiding(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A copy that cannot begin any response of the forget set, and knows all of it."""
    hidden = copy.deepcopy(model)
    firsts = {row.labels[0] for row in encode(records(FORGET), tokenizer, template="none")}
    head = torch.nn.Linear(hidden.config.hidden_size, hidden.config.vocab_size)
    head.weight = hidden.get_output_embeddings().weight
    with torch.no_grad():
        head.bias.zero_()
        head.bias[list(firsts)] = -100.0
    hidden.lm_head = head
    return hidden


@dataclass(frozen=True)
class FirstTokens:
    """Puts the first tokens of the response into the model's mouth; so looks an attack in a user's file."""

    tokens: int = 1
    name: ClassVar[str] = "first-tokens"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = "The first tokens of the response are given."

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"`tokens` must be at least 1; got {self.tokens}. Give more.")

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        return Cost(forward_tokens=sum(tokens_in(record.prompt) for record in probes.forget))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        questions = [Question(record, record.prompt, self.tokens) for record in probes.forget]
        found = ask(target, questions, probes.encoding, setting)
        assert None not in found
        return Findings(
            found, curve={float(self.tokens): [one.recovered for one in found]}, axis="tokens given"
        )


def without(value: Any, key: str) -> Any:
    """Nested values without what stands under a key."""
    if isinstance(value, dict):
        return {name: without(item, key) for name, item in value.items() if name != key}
    return [without(item, key) for item in value] if isinstance(value, list) else value


def model_entry(sha256: str) -> ModelEntry:
    return ModelEntry(source="m", sha256=sha256, parameters=1, dtype="float32")
