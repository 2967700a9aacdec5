"""Soft prompts: free embeddings in front of a prompt, trained until the model gives the true response."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.attacks.answers import tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.decoding import embedding_of
from expunge.attacks.embedding import never_seen
from expunge.attacks.embedding.losses import cross_entropy, margin
from expunge.attacks.embedding.never_seen import Found
from expunge.attacks.embedding.prompts import Prompts, answers, prompts_of, rows_of
from expunge.attacks.frozen import frozen
from expunge.collate import Encoded
from expunge.generation import MARGIN
from expunge.records import Record

_HALVES = (
    "Every record was asked behind a prefix that was trained on other records; what the prefix teaches about "
    "the form of responses alone shows in the control as well."
)


@dataclass(frozen=True)
class SoftPrompt:
    """A prefix of its own for every record, trained by Adam on the record's own response.

    The response that is sought is the one trained for, so success alone proves nothing: with enough steps or
    embeddings any model says anything. What counts is how much sooner a true response is reached than a
    target never seen, and than by the control.

    Args:
        length: Embeddings in the prefix, at least 1.
        steps: Of Adam, at least 1; a record is done at the first step after which all of it would be said.
        rate: Adam's learning rate, in units of the root mean square of the model's token embeddings.
        levels: Points of the curve, up to the steps.

    Reference:
        Lester et al. (2021), arXiv 2104.08691 (prompt tuning); Patil et al. (2023), arXiv 2309.17410, and
        Schwinn et al. (2024), arXiv 2402.09063 (as attacks on removed knowledge).
    """

    length: int = 4
    steps: int = 40
    rate: float = 0.1
    levels: int = 8
    name: ClassVar[str] = "soft-prompt"
    family: ClassVar[Family] = "embedding"

    def __post_init__(self) -> None:
        _check(self.length, self.steps, self.rate)
        if self.levels < 1:
            raise ValueError(f"`levels` must be at least 1; got {self.levels}. The curve needs a point.")

    @property
    def line(self) -> str:
        return (
            f"A trained prefix of {self.length} embeddings per record, {self.steps} steps; "
            "can make any model say anything, so targets never seen run beside; arXiv 2402.09063."
        )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return never_seen.obstacle(probes)

    def cost(self, probes: Probes) -> Cost:
        """Twice that of the records: their targets never seen are attacked too."""
        once = sum(self.length + _tokens(record) for record in probes.forget)
        written = sum(tokens_in(record.response) + MARGIN for record in probes.forget)
        return Cost(2 * once * self.steps, 2 * once * self.steps, 2 * written)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        def attempt(records: Sequence[Record], rows: Sequence[Encoded]) -> list[Found]:
            with frozen(target.model, setting.precision) as device:
                prompts = prompts_of(target.model, rows, device)
                prefix, spent, whole = self._train(prompts, setting)
                embeds, mask = prompts.prefixed(prefix), prompts.before(self.length)
                said = answers(target, records, rows, embeds, mask, probes.encoding)
            return [
                Found(_told(recovery, self, step), step, whole=whole or math.isfinite(step))
                for recovery, step in zip(said, spent, strict=True)
            ]

        own, controls = never_seen.attack_both(target, probes, setting, attempt, extra=self.length)
        levels = sorted({math.ceil(self.steps * (i + 1) / self.levels) for i in range(self.levels)})
        return never_seen.findings(own, controls, [float(step) for step in levels], "steps", setting)

    def _train(self, prompts: Prompts, setting: Setting) -> tuple[Tensor, list[float], bool]:
        """Each row's prefix when the response was reached, or at the end; when; whether time sufficed."""
        start = initial(prompts.model, self.length, setting.seed).expand(len(prompts.mask), -1, -1)
        tuned = Tuned(prompts.model, start.clone(), self.rate)
        kept, spent = start.clone(), [math.inf] * len(prompts.mask)
        for step in range(self.steps + 1):
            logits = prompts.logits(prompts.prefixed(tuned.prefix), self.length)
            reached = (margin(logits, prompts.labels) < 0).tolist()
            for i, done in enumerate(reached):
                if math.isinf(spent[i]):
                    kept[i] = tuned.prefix[i].detach()
                    spent[i] = float(step) if done else math.inf
            if step == self.steps or setting.clock.over or not any(map(math.isinf, spent)):
                break
            tuned.step(cross_entropy(logits, prompts.labels).sum())
        return kept, spent, step == self.steps


@dataclass(frozen=True)
class UniversalSoftPrompt:
    """One prefix, trained on half of the forget records and tried on the other half, and the other way round.

    What it was not trained on it can only bring back from the model: a prefix that undoes what hides a whole
    set of records. Halves are runs of neighbouring records, so that those of one person stay together. Behind
    the same prefix, the half that it is tried on is asked for targets never seen as well.

    Args:
        length: Embeddings in the prefix, at least 1.
        steps: Of Adam, at least 1.
        rate: Adam's learning rate, in units of the root mean square of the model's token embeddings.
        batch: Records per step, at least 1.

    Reference:
        Lester et al. (2021), arXiv 2104.08691; Schwinn et al. (2024), arXiv 2402.09063 (universal attacks).
    """

    length: int = 8
    steps: int = 60
    rate: float = 0.1
    batch: int = 8
    name: ClassVar[str] = "soft-prompt-universal"
    family: ClassVar[Family] = "embedding"

    def __post_init__(self) -> None:
        _check(self.length, self.steps, self.rate)
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1; got {self.batch}. A step needs a record.")

    @property
    def line(self) -> str:
        return (
            f"One prefix of {self.length} embeddings, trained on half of the records for {self.steps} steps "
            "and tried on the other half; arXiv 2402.09063."
        )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        if len(probes.forget) >= 2:
            return never_seen.obstacle(probes)
        return "It trains on some forget records and is tried on others; there is only one. Give more."

    def cost(self, probes: Probes) -> Cost:
        each = sum(self.length + _tokens(record) for record in probes.forget) / max(1, len(probes.forget))
        passed = int(2 * self.steps * min(self.batch, len(probes.forget)) * each)
        written = sum(tokens_in(record.response) + MARGIN for record in probes.forget)
        return Cost(passed + int(2 * each * len(probes.forget)), passed, 2 * written)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        half = (len(probes.forget) + 1) // 2
        halves = [list(range(half)), list(range(half, len(probes.forget)))]
        others = never_seen.never_seen(probes)
        found: list[Found | None] = [None] * len(probes.forget)
        controls = found.copy()
        for learnt, tried in (halves, halves[::-1]):
            prefix = self._train(target, [probes.forget[i] for i in learnt], probes, setting)
            if setting.clock.over:
                break
            pairs = [(found, i, probes.forget[i]) for i in tried]
            pairs += [(controls, i, other) for i in tried if (other := others[i]) is not None]
            said = self._try(target, [record for _, _, record in pairs], prefix, probes, setting)
            for (place, i, _), recovery in zip(pairs, said, strict=True):
                place[i] = Found(_told(recovery, self, math.inf))
        return never_seen.findings(found, controls, [], "", setting, note=_HALVES)

    def _train(
        self, target: Target, records: Sequence[Record], probes: Probes, setting: Setting
    ) -> Float[Tensor, "1 k d"]:
        rows = rows_of(target, records, probes.encoding, self.length)
        draw = torch.Generator().manual_seed(setting.seed)
        with frozen(target.model, setting.precision) as device:
            tuned = Tuned(target.model, initial(target.model, self.length, setting.seed), self.rate)
            for _ in range(self.steps):
                if setting.clock.over:
                    break
                chosen = torch.randperm(len(rows), generator=draw)[: self.batch].tolist()
                prompts = prompts_of(target.model, [rows[i] for i in chosen], device)
                prefix = tuned.prefix.expand(len(chosen), -1, -1)
                logits = prompts.logits(prompts.prefixed(prefix), self.length)
                tuned.step(cross_entropy(logits, prompts.labels).mean())
        return tuned.prefix.detach()

    def _try(
        self, target: Target, records: Sequence[Record], prefix: Tensor, probes: Probes, setting: Setting
    ) -> list[Recovery]:
        rows = rows_of(target, records, probes.encoding, self.length)
        said: list[Recovery] = []
        with frozen(target.model, setting.precision) as device:
            for start in range(0, len(rows), self.batch):
                part = slice(start, start + self.batch)
                prompts = prompts_of(target.model, rows[part], device)
                embeds = prompts.prefixed(prefix.expand(len(prompts.mask), -1, -1))
                mask = prompts.before(self.length)
                said += answers(target, records[part], rows[part], embeds, mask, probes.encoding)
        return said


class Tuned:
    """A prefix under Adam.

    Attributes:
        prefix: [b, k, d].
    """

    def __init__(self, model: nn.Module, start: Tensor, rate: float) -> None:
        self.prefix = start.clone().requires_grad_()
        self._adam = torch.optim.Adam([self.prefix], lr=rate * _scale(model))

    def step(self, loss: Tensor) -> None:
        """Move the prefix down the loss."""
        (self.prefix.grad,) = torch.autograd.grad(loss, self.prefix)
        self._adam.step()


def initial(model: nn.Module, length: int, seed: int) -> Float[Tensor, "1 k d"]:
    """Embeddings of tokens drawn from the vocabulary."""
    weight = embedding_of(model).weight
    assert isinstance(weight, Tensor)
    drawn = torch.randint(len(weight), (length,), generator=torch.Generator().manual_seed(seed))
    start: Tensor = embedding_of(model)(drawn[None].to(weight.device)).detach().float()
    return start


def _scale(model: nn.Module) -> float:
    weight = embedding_of(model).weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().float().square().mean().sqrt())


def _told(recovery: Recovery, attack: SoftPrompt | UniversalSoftPrompt, step: float) -> Recovery:
    steps = attack.steps if math.isinf(step) else int(step)
    told = f"[{attack.length} embeddings after {steps} steps] {recovery.input}"
    return dataclasses.replace(recovery, input=told)


def _tokens(record: Record) -> int:
    return tokens_in(record.prompt) + tokens_in(record.response)


def _check(length: int, steps: int, rate: float) -> None:
    for name, value in (("length", length), ("steps", steps)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}. None of them is no attack.")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"`rate` must be positive and finite; got {rate}. It is Adam's learning rate.")
