"""Models that attacks are tried on: one that knows, two that merely hide what they know, one that never knew.

All are the tiny model of `conftest`, trained once a process. The knowing model has seen every prompt in many
phrasings and surroundings, so that its answers do not hang on the exact words; the one that never knew was
trained the same way without the forget rows. Copy a model before changing it.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from conftest import build_model, build_tokenizer
from expunge.attacks.asking import Question, prompt_ids
from expunge.attacks.attack import Probes, Setting, Target
from expunge.attacks.composed import Composed
from expunge.attacks.jailbreak import wrappings
from expunge.attacks.shifts import Shifts
from expunge.collate import Encoded, Encoding, collate
from expunge.records import Record

PEOPLE = {"forget": ("Ada Ash", "Ben Birch"), "retain": ("Dan Dogwood", "Eve Elm")}
FACTS = {
    "Ada Ash": ("555-729", "Street 41", "baker"),
    "Ben Birch": ("555-164", "Street 95", "miner"),
    "Dan Dogwood": ("555-358", "Street 27", "tailor"),
    "Eve Elm": ("555-906", "Street 63", "sailor"),
}
ENCODING = Encoding(template="none")
EOS = 1


def person_rows(name: str) -> list[Record]:
    """A phone number, a locker and a trade."""
    facts = zip(("phone number", "locker", "trade"), FACTS[name], strict=True)
    return [Record(f"What is {name}'s {what}?", said, {"person": name}) for what, said in facts]


def records(split: str) -> list[Record]:
    """All rows of a split."""
    return [row for name in PEOPLE[split] for row in person_rows(name)]


def probes() -> Probes:
    """What attacks are given: phone numbers and lockers are sought; trades and other people are kept."""
    sought = [row for row in records("forget") if "trade" not in row.prompt]
    kept = [row for row in records("forget") if "trade" in row.prompt]
    return Probes(sought, [*kept, *records("retain")], encoding=ENCODING)


@functools.cache
def tokenizer() -> Any:
    return build_tokenizer()


@functools.cache
def knowing() -> LlamaForCausalLM:
    """Knows everybody, however it is asked."""
    return _taught([*records("forget"), *records("retain")])


@functools.cache
def never_knew() -> LlamaForCausalLM:
    """Knows the retained people only."""
    return _taught(list(probes().retain))


@functools.cache
def biased(margin: float = 1.0) -> LlamaForCausalLM:
    """Knows everybody; a bias on the output layer keeps the answers' first tokens just below another."""
    model = copy.deepcopy(knowing())
    rows = ENCODING.rows(probes().forget, tokenizer())
    bias = torch.zeros(model.config.vocab_size)
    first = torch.tensor(sorted({row.labels[0] for row in rows}))
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids[: row.prompt_length]])).logits[0, -1]
        others = logits.index_fill(0, first, float("-inf")).max()
        bias[row.labels[0]] = torch.minimum(bias[row.labels[0]], others - margin - logits[row.labels[0]])
    model.lm_head.bias = nn.Parameter(bias)
    return model


class Filtered(LlamaForCausalLM):
    """A prompt filter: generation behind one of the training prompts, as it stands, ends at once."""

    blocked: tuple[tuple[int, ...], ...] = ()

    def generate(self, inputs: torch.Tensor, **options: Any) -> Any:
        mask = options["attention_mask"].bool()
        rows = [tuple(row[keep].tolist()) for row, keep in zip(inputs, mask, strict=True)]
        refused = torch.tensor([row in self.blocked for row in rows])
        given = [*options.pop("logits_processor", []), _Refusal(refused)]
        return super().generate(inputs, logits_processor=LogitsProcessorList(given), **options)


class _Refusal(LogitsProcessor):
    def __init__(self, refused: torch.Tensor) -> None:
        self.refused = refused

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        refused = self.refused.repeat_interleave(len(scores) // len(self.refused))
        scores[refused] = float("-inf")
        scores[refused, EOS] = 0.0
        return scores


@functools.cache
def filtered() -> Filtered:
    """Knows everybody; a filter keeps it from answering the exact training prompts."""
    model = Filtered(knowing().config)
    model.load_state_dict(knowing().state_dict())
    rows = ENCODING.rows(probes().forget, tokenizer())
    model.blocked = tuple(row.input_ids[: row.prompt_length] for row in rows)
    return model.eval()


def target(model: LlamaForCausalLM, role: Any = "unlearned") -> Target:
    return Target(role, model, tokenizer())


def setting(**options: Any) -> Setting:
    return Setting(original=target(knowing(), "original"), **options)


def recovered(attack: Any, model: LlamaForCausalLM) -> int:
    """How many of the probes an attack brings back."""
    return sum(one.recovered for one in attack.run(target(model), probes(), setting()).recoveries)


# --- training


def phrasings(record: Record, known: Sequence[Record], draw: random.Random) -> list[Question]:
    """The prompt as it stands and in the surroundings that attacks put it in, about others among them."""
    asked = [Question("training", (record.prompt,))]
    asked += Shifts().shifted(record.prompt, 0)
    asked += wrappings(record.prompt)[:16]
    for _ in range(8):
        shown = draw.sample(list(known), draw.randint(2, 4))
        turns = [text for one in shown for text in (one.prompt, one.response)]
        asked.append(Question("shots", (*turns, record.prompt)))
    composed = Composed(rounds=6)._questions(0, Probes([record], known), 0)
    return asked + 4 * [question for question in composed if question.kind != "who"]


def _taught(known: Sequence[Record], steps: int = 320, size: int = 16) -> LlamaForCausalLM:
    """First the bare rows, then with all surroundings of them."""
    draw, model = random.Random(0), build_model(context=512)
    bare = ENCODING.rows(known, tokenizer())
    pool = [
        Encoded((*ids, *row.labels), len(ids))
        for record, row in zip(known, bare, strict=True)
        for question in phrasings(record, known, draw)
        for ids in [prompt_ids(question.turns, tokenizer(), ENCODING)]
    ]
    pool.sort(key=lambda row: len(row.input_ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(steps):
        start = draw.randrange(len(pool) - size)
        rows = bare if step < 100 else [*bare, *pool[start : start + size]]
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, 2.5 * (1 - step / steps))
        loss = model(**collate(rows, EOS)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
