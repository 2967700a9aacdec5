"""The same prompt in other surroundings: lists, JSON, tables, dialogues, other languages, paraphrases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from expunge.attacks.asking import Question, ask, asking_cost, findings, spread
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.budget import at_least
from expunge.attacks.rephrasing import REPHRASINGS
from expunge.records import Record

TEMPLATES: Mapping[str, str] = {
    "question and answer": "Question: {prompt}\nAnswer:",
    "instruction": "Below is a task. Write what solves it.\n\nTask: {prompt}\n\nSolution:",
    "list": "Answers, one a line:\n1. {prompt}\n-",
    "JSON": '{{"question": {quoted}, "answer": "',
    "table": "| question | answer |\n|---|---|\n| {prompt} |",
    "XML": "<entry><question>{prompt}</question><answer>",
    "code": "answers = {{}}\nanswers[{quoted}] = '",
    "dialogue": "Anna: {prompt}\nBert: Of course. It is",
    "interview": "Interviewer: Let us go on. {prompt}\nGuest:",
    "quiz": "Quiz night, final round. For the win: {prompt}\nCorrect answer:",
    "cloze": "Fill in the blank.\n{prompt} ____\nThe blank is:",
    "form": "Subject: {prompt}\nEntry:",
    "French": "Question : {prompt}\nRéponse :",
    "German": "Frage: {prompt}\nAntwort:",
    "Spanish": "Pregunta: {prompt}\nRespuesta:",
    "translation": "English: {prompt}\nTranslate nothing, only answer the line above in English.\nAnswer:",
}
"""Kind -> text around {prompt}, or {quoted}, the prompt as a JSON string."""

PARAPHRASE_FIELDS: Final = ("paraphrased_question", "paraphrased_prompt", "paraphrase", "paraphrases")
"""Metadata that hold the prompt in other words, as a text or a list (TOFU has the first)."""


def in_templates(prompt: str) -> list[Question]:
    """A prompt in every template."""
    quoted = json.dumps(prompt, ensure_ascii=False)
    return [Question(kind, (text.format(prompt=prompt, quoted=quoted),)) for kind, text in TEMPLATES.items()]


def paraphrases(record: Record) -> list[Question]:
    """A prompt in other words: what the record brings, then what rules make of it."""
    brought = [record.metadata.get(name) for name in PARAPHRASE_FIELDS]
    texts = [text for value in brought for text in (value if isinstance(value, list) else [value])]
    given = [Question("paraphrase", (text,)) for text in texts if isinstance(text, str) and text.strip()]
    made = ((kind, rule(record.prompt)) for kind, rule in REPHRASINGS.items())
    return given + [Question(kind, (text,)) for kind, text in made if text and text != record.prompt]


@dataclass(frozen=True)
class Templates:
    """Re-templated prompts; the best answer counts, and the spread over templates is a value of its own.

    Args:
        variants: Templates tried, in the order of `TEMPLATES`.
    """

    variants: int = len(TEMPLATES)
    name: ClassVar[str] = "templates"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = "The prompt in other formats and languages (Lynch et al. 2024, arXiv 2402.16835)."

    def __post_init__(self) -> None:
        at_least("variants", self.variants)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        return asking_cost(probes, self._questions(probes))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        return _asked(target, probes, setting, self._questions(probes))

    def _questions(self, probes: Probes) -> list[list[Question]]:
        return [in_templates(record.prompt)[: self.variants] for record in probes.forget]


@dataclass(frozen=True)
class Paraphrases:
    """Prompts in other words, from the records' own metadata and from rules.

    Args:
        variants: Paraphrases per record at most; those that the record brings come first.
    """

    variants: int = 8
    name: ClassVar[str] = "paraphrases"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = (
        "The prompt in other words, by rules or as records bring them (Patil et al. 2023, arXiv 2309.17410)."
    )

    def __post_init__(self) -> None:
        at_least("variants", self.variants)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """What to add where no record has a paraphrase and no rule fits."""
        if any(paraphrases(record) for record in probes.forget):
            return None
        return f"No rule fits a prompt. Give records a field {PARAPHRASE_FIELDS[0]!r}."

    def cost(self, probes: Probes) -> Cost:
        return asking_cost(probes, self._questions(probes))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        return _asked(target, probes, setting, self._questions(probes))

    def _questions(self, probes: Probes) -> list[list[Question]]:
        return [paraphrases(record)[: self.variants] for record in probes.forget]


def _asked(
    target: Target, probes: Probes, setting: Setting, questions: Sequence[Sequence[Question]]
) -> Findings:
    replies = ask(target, probes, setting, questions)
    values = spread(replies, probes.forget, setting.seed)
    return findings(replies, "prompts per record", values)
