"""Perturbed probes: words that the answer hangs on stay, those around them change.

Integrated gradients of the answer's log-probability say which words of a prompt matter. Context words are
dropped, or rewritten by the model itself or with words of other records; entities other than the one that
matters most are replaced with entities of the same type from other records.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from expunge.attacks.answers import ask_rows, stopped, tokens_in
from expunge.attacks.asking import Question, Replies, ask, asking_cost, findings, spread
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.budget import at_least
from expunge.attribution import STEPS, attributions
from expunge.collate import Encoded, encode_prompt
from expunge.records import Record
from expunge.words import Word, entities, token_spans, words

Marks = Mapping[tuple[int, int], float]
"""Where a word stands in its prompt -> how much of the answer's log-probability it carries (nats)."""


@dataclass(frozen=True)
class Perturbed:
    """Probes whose context and entities are perturbed, least important words first; the best answer counts.

    Args:
        words: Context words that are changed at most, per probe.
        rounds: Draws of replacing words and entities.
        nodes: Of the integral, per record.
    """

    words: int = 2
    rounds: int = 3
    nodes: int = STEPS
    name: ClassVar[str] = "perturbed"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = (
        "Entities and context are perturbed where integrated gradients find them (Sundararajan et al., arXiv "
        "1703.01365; entity and context attacks: Lin et al. 2021, arXiv 2109.05620, RockNER)."
    )

    def __post_init__(self) -> None:
        for name in ("words", "rounds", "nodes"):
            at_least(name, getattr(self, name))

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        rows = sum(tokens_in(record.prompt) + tokens_in(record.response) for record in probes.forget)
        asked = [
            [Question("perturbed", (record.prompt,))] * (2 * self.words + 2 * self.rounds)
            for record in probes.forget
        ]
        cost = asking_cost(probes, asked)
        return replace(
            cost, forward_tokens=cost.forward_tokens + self.nodes * rows, backward_tokens=self.nodes * rows
        )

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        questions: list[list[Question]] = [[] for _ in rows]
        reached = 0
        for i, (record, row) in enumerate(zip(probes.forget, rows, strict=True)):
            if setting.clock.over:
                break
            marks = importance(record.prompt, row, target, self.nodes)
            questions[i] = self._perturbations(record, marks, target, probes, setting)
            reached += 1
        found = ask(target, probes, setting, questions)
        if reached < len(rows):
            note = stopped(setting, reached, len(rows), "records")
            found = Replies(found.of, [*found.notes, note], complete=False)
        return findings(found, "prompts per record", spread(found, probes.forget, setting.seed))

    def _perturbations(
        self, record: Record, marks: Marks, target: Target, probes: Probes, setting: Setting
    ) -> list[Question]:
        draw = random.Random(zlib.crc32(f"{setting.seed} {record.prompt}".encode()))
        others = [r.prompt for r in (*probes.retain, *probes.forget) if r.prompt != record.prompt]
        context = ranked_context(record.prompt, marks)[: self.words]
        texts: list[tuple[str, str]] = []
        for n in range(1, len(context) + 1):
            texts.append(("context dropped", dropped(record.prompt, context[:n])))
            texts.append(("context rewritten", _rewritten(record.prompt, context[:n], target, setting)))
        for _ in range(self.rounds):
            texts.append(("context of others", _swapped(record.prompt, context, others, draw)))
            texts.append(("entities of others", other_entities(record.prompt, marks, others, draw)))
        fresh = {text: what for what, text in reversed(texts) if text not in ("", record.prompt)}
        order = dict.fromkeys(text for _, text in texts if text in fresh)
        return [Question(fresh[text], (text,)) for text in order]


# --- what matters


def importance(prompt: str, row: Encoded, target: Target, nodes: int = STEPS) -> dict[tuple[int, int], float]:
    """Attribution of every word of a prompt: the sum over the tokens that write it, without its sign.

    Args:
        prompt: The user's text, which stands somewhere in the row's prompt.
        row: The record as the model reads it.
        target: Whose answer it is.
        nodes: Of the integral.
    """
    pad = target.tokenizer.pad_token_id
    baseline = int(pad if pad is not None else row.input_ids[0])
    (found,) = attributions(target.model, [row], baseline=baseline, steps=nodes)
    text, spans = token_spans(row.input_ids[: row.prompt_length], target.tokenizer)
    shift = max(0, text.rfind(prompt))
    return {
        (word.start, word.end): float(
            abs(
                np.sum(
                    [
                        value
                        for value, (start, end) in zip(found, spans, strict=False)
                        if max(start, word.start + shift) < min(end, word.end + shift)
                    ]
                )
            )
        )
        for word in words(prompt)
    }


def ranked_context(prompt: str, marks: Marks) -> list[Word]:
    """Words that name nothing, the least important first."""
    named = {(word.start, word.end) for word in entities(prompt)}
    rest = [word for word in words(prompt) if (word.start, word.end) not in named]
    return sorted(rest, key=lambda word: marks.get((word.start, word.end), 0.0))


def names(prompt: str) -> list[Word]:
    """Entities of a prompt: words that name something, those that follow each other as one."""
    joined: list[Word] = []
    for word in entities(prompt):
        last = joined[-1] if joined else None
        if last is not None and prompt[last.end : word.start] == " " and kind(last.text) == kind(word.text):
            joined[-1] = Word(prompt[last.start : word.end], last.start, word.end)
        else:
            joined.append(word)
    return joined


def kind(entity: str) -> str:
    """Type of an entity: "mail", "name", or the shape of a number ("000-00")."""
    if "@" in entity:
        return "mail"
    return re.sub(r"\d", "0", entity) if any(c.isdigit() for c in entity) else "name"


# --- what changes


def dropped(prompt: str, chosen: Sequence[Word]) -> str:
    """The prompt without some words."""
    return " ".join(_replaced(prompt, dict.fromkeys(chosen, "")).split())


def other_entities(prompt: str, marks: Marks, others: Sequence[str], draw: random.Random) -> str:
    """The prompt with entities of other records in place of its own, but for the one that matters most.

    Where there is only one, its least important word is replaced with one of another of its type.
    """
    found = names(prompt)
    pool: dict[str, list[str]] = {}
    for text in others:
        for entity in names(text):
            pool.setdefault(kind(entity.text), []).append(entity.text)
    if len(found) == 1:
        parts = [w for w in words(prompt) if found[0].start <= w.start and w.end <= found[0].end]
        least = min(parts, key=lambda w: marks.get((w.start, w.end), 0.0))
        fitting = sorted({part for text in pool.get(kind(least.text), []) for part in text.split()})
        fitting = [part for part in fitting if part not in found[0].text]
        return _replaced(prompt, {least: draw.choice(fitting)}) if fitting and len(parts) > 1 else prompt
    main = max(found, key=lambda w: _weight(w, marks), default=None)
    changes = {}
    for entity in found:
        fitting = sorted({text for text in pool.get(kind(entity.text), []) if text not in prompt})
        if entity != main and fitting:
            changes[entity] = draw.choice(fitting)
    return _replaced(prompt, changes)


def _weight(entity: Word, marks: Marks) -> float:
    inside = [value for (start, end), value in marks.items() if entity.start <= start and end <= entity.end]
    return float(sum(inside))


def _swapped(prompt: str, chosen: Sequence[Word], others: Sequence[str], draw: random.Random) -> str:
    """The prompt with context words of other records in place of some of its own."""
    own = {word.text.casefold() for word in words(prompt)}
    pool = sorted({word.text for text in others for word in ranked_context(text, {})})
    fitting = [word for word in pool if word.casefold() not in own]
    return _replaced(prompt, {word: draw.choice(fitting) for word in chosen}) if fitting else prompt


def _rewritten(prompt: str, chosen: Sequence[Word], target: Target, setting: Setting) -> str:
    """The prompt with the words that the model itself would write in the places of some of its own."""
    changes = {}
    for word in chosen:
        before = prompt[: word.start].rstrip()
        if not before:
            continue
        ids = encode_prompt(before, target.tokenizer, "none")
        (text,) = ask_rows(target, [Encoded(ids, len(ids))], [4], Setting(precision=setting.precision))
        written = words(text or "")
        if written:
            changes[word] = written[0].text
    return _replaced(prompt, changes)


def _replaced(prompt: str, changes: Mapping[Word, str]) -> str:
    for word in sorted(changes, key=lambda word: -word.start):
        prompt = prompt[: word.start] + changes[word] + prompt[word.end :]
    return prompt
