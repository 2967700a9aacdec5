"""Relearning: a few steps of fine-tuning, on some forget records or on none, and what else comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from expunge.attacks.answers import asking_cost, says, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.low_rank import low_rank
from expunge.attacks.neutral import NEUTRAL
from expunge.attacks.restored import restored
from expunge.attacks.sweep import Tally, answers
from expunge.batching import RowStream
from expunge.collate import Encoded, Encoding, collate
from expunge.inference import model_context
from expunge.metrics import normalise
from expunge.observation import token_logits
from expunge.records import Record

_LINES = {
    "forget": "Fine-tuning on a few forget records, asking for the others (RTT, arXiv 2410.08827)",
    "retain": "Fine-tuning on retain-like records, asking for the forgotten ones",
    "unrelated": "Fine-tuning on common knowledge, asking for the forgotten records",
}


@dataclass(frozen=True)
class Lesson:
    """What one round of relearning trains on, and which forget records it is asked for."""

    training: tuple[Record, ...]
    tested: tuple[int, ...]


@dataclass(frozen=True)
class Relearn:
    """Fine-tune for a few steps and ask after some of them.

    Records that are asked for are never trained on: the forget set is cut into folds, each is asked for after
    training on the others, and of these only on records that do not contain one of the responses asked for. A
    model that has truly lost the records learns the ones shown and nothing of the rest, like the control; a
    model that hides them brings the rest back. AdamW without decay; step 0 is the model as it is.

    Args:
        on: Records to train on: the other forget records, retain records, or common knowledge.
        rows: Of them at most, at least 1.
        steps: Optimizer steps after which is asked, each at least 1.
        folds: Parts of the forget set, at least 2; only where `on` is "forget".
        learning_rate: η, positive; None: 1e-4 for the weights, 1e-3 for an adapter.
        batch_size: Rows per step, at least 1.
        lora_rank: Rank of an adapter to train in place of the weights; 0 trains the weights.

    Reference:
        Deeb and Roger (2024), arXiv 2410.08827 (retraining on T, testing on V); on retain-like and unrelated
        text: Hu et al. (2024), arXiv 2406.13356 (benign relearning).
    """

    on: Literal["forget", "retain", "unrelated"] = "forget"
    rows: int = 32
    steps: tuple[int, ...] = (2, 5, 10, 20)
    folds: int = 2
    learning_rate: float | None = None
    batch_size: int = 8
    lora_rank: int = 0
    family: ClassVar[Family] = "weights"

    def __post_init__(self) -> None:
        counts = {"rows": self.rows, "batch_size": self.batch_size, "steps": min(self.steps, default=0)}
        if wrong := [name for name, count in counts.items() if count < 1]:
            raise ValueError(
                f"`{wrong[0]}` must be at least 1; got {counts[wrong[0]]}. Leave the attack out instead."
            )
        if self.folds < 2 or self.lora_rank < 0:
            raise ValueError(
                f"`folds` must be at least 2 and `lora_rank` at least 0; got {self.folds}, {self.lora_rank}."
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive; got {self.learning_rate}.")

    @property
    def name(self) -> str:
        where = "" if self.on == "forget" else f"-{self.on}"
        return f"relearn{where}{'-lora' if self.lora_rank else ''}"

    @property
    def line(self) -> str:
        return f"{_LINES[self.on]}{', by LoRA' if self.lora_rank else ''}."

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        if self.on == "retain" and not probes.retain:
            return "It needs retain records: give --retain."
        if self.on == "forget" and len(probes.forget) < 2:
            return "It needs at least two forget records: one to relearn and another to ask for."
        return None

    def cost(self, probes: Probes) -> Cost:
        rounds = min(self.folds, len(probes.forget)) if self.on == "forget" else 1
        shown = {"forget": probes.forget, "retain": probes.retain, "unrelated": NEUTRAL}[self.on]
        length = sum(tokens_in(r.prompt) + tokens_in(r.response) for r in shown) / max(1, len(shown))
        trained = int(rounds * max(self.steps) * self.batch_size * length)
        asked = asking_cost(probes, [[record.prompt] * (1 + len(self._looks)) for record in probes.forget])
        return Cost(trained + asked.forward_tokens, trained, asked.generated_tokens)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        tally = Tally(probes, "relearning steps")
        lessons = self.lessons(probes, setting.seed)
        tally.add(0.0, "before relearning", answers(target, probes, setting))
        for lesson in lessons:
            if not setting.clock.over:
                self._teach(lesson, target, probes, setting, tally)
        wanted = len(probes.forget) + len(self._looks) * sum(len(lesson.tested) for lesson in lessons)
        return tally.findings(setting, wanted, self._notes(lessons, len(probes.forget)))

    def lessons(self, probes: Probes, seed: int) -> list[Lesson]:
        """What is trained and asked in each round; a fold with nothing left to train on is missing."""
        every = tuple(range(len(probes.forget)))
        draw = np.random.default_rng(seed)
        if self.on != "forget":
            pool = probes.retain if self.on == "retain" else NEUTRAL
            return [Lesson(_drawn(pool, self.rows, draw, [r.response for r in probes.forget]), every)]
        found = []
        for part in np.array_split(draw.permutation(len(every)), min(self.folds, len(every))):
            tested = tuple(sorted(part.tolist()))
            others = [probes.forget[i] for i in every if i not in tested]
            training = _drawn(others, self.rows, draw, [probes.forget[i].response for i in tested])
            found.append(Lesson(training, tested))
        return [lesson for lesson in found if lesson.training]

    @property
    def _looks(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.steps)))

    def _teach(self, lesson: Lesson, target: Target, probes: Probes, setting: Setting, tally: Tally) -> None:
        """Train on one lesson and ask at every look; the model is bit-identical afterwards."""
        encoding = Encoding(
            probes.encoding.template, probes.encoding.max_length or model_context(target.model)
        )
        rows = encoding.rows(lesson.training, target.tokenizer, name="records to relearn")
        model = target.model
        adapted = low_rank(model, self.lora_rank, setting.seed) if self.lora_rank else nullcontext()
        with restored(model), adapted as factors:
            parameters = _trainable(model, factors)
            rate = self.learning_rate or (1e-3 if self.lora_rank else 1e-4)
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
            for step in self._train(model, rows, optimizer, setting):
                if step in self._looks:
                    words = f"{step} steps of relearning at {rate:g} on {len(rows)} {self.on} records"
                    tally.add(float(step), words, answers(target, probes, setting, lesson.tested))

    def _train(
        self, model: nn.Module, rows: Sequence[Encoded], optimizer: torch.optim.Optimizer, setting: Setting
    ) -> Iterator[int]:
        """Optimizer steps, until the last look or the end of the time; dropout off."""
        device = next(model.parameters()).device
        draws = RowStream([len(row.input_ids) for row in rows], self.batch_size, (setting.seed,))
        for step in range(self._looks[-1]):
            if setting.clock.over:
                return
            batch = {
                key: value.to(device) for key, value in collate([rows[i] for i in draws[step]], 0).items()
            }
            with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
                loss = -token_logits(model, batch).target_log_probs.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield step + 1

    def _notes(self, lessons: Sequence[Lesson], records: int) -> list[str]:
        tested = sum(len(lesson.tested) for lesson in lessons)
        if tested == records:
            return []
        return [
            f"{records - tested} of {records} records were asked for before relearning only: every other "
            "record contains one of the responses asked for."
        ]


def _trainable(model: nn.Module, factors: list[nn.Parameter] | None) -> list[nn.Parameter]:
    """What trains: the factors, or every weight; all else is frozen."""
    model.requires_grad_(False)
    if factors is not None:
        return factors
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _drawn(
    pool: Sequence[Record], count: int, draw: np.random.Generator, secret: Sequence[str]
) -> tuple[Record, ...]:
    """So many records of a pool, none of which says one of the secret responses."""
    told = [normalise(f"{record.prompt} {record.response}") for record in pool]
    hidden = {normalise(response) for response in secret}
    free = [i for i, text in enumerate(told) if not any(says(text, response) for response in hidden)]
    return tuple(pool[i] for i in sorted(draw.permutation(free)[:count].tolist()))
