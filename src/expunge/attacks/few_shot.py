"""Few-shot prompts: retained records of the same form show the model that such questions get answers."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from expunge.attacks.asking import Question, ask, asking_cost, findings
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.budget import at_least
from expunge.records import Record
from expunge.words import entities, words


@dataclass(frozen=True)
class FewShot:
    """The prompt behind answered prompts of retained neighbours; the best of several selections counts.

    Neighbours are likest in form: by the words of the prompt without its names and numbers (Jaccard). The
    first selection takes the nearest; later ones draw from four times as many.

    Args:
        shots: Answered records before the prompt.
        rounds: Selections per record.
    """

    shots: int = 4
    rounds: int = 3
    name: ClassVar[str] = "few-shot"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = (
        "Behind answered prompts of retained neighbours (in-context relearning: Lynch et al. 2024, "
        "arXiv 2402.16835)."
    )

    def __post_init__(self) -> None:
        at_least("shots", self.shots)
        at_least("rounds", self.rounds)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """What to give where there are no neighbours."""
        return None if probes.retain else "It needs retained records to show. Give retain records."

    def cost(self, probes: Probes) -> Cost:
        return asking_cost(probes, self._questions(probes, 0))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        questions = self._questions(probes, setting.seed)
        return findings(ask(target, probes, setting, questions), "selections of neighbours")

    def _questions(self, probes: Probes, seed: int) -> list[list[Question]]:
        forms = [form(record.prompt) for record in probes.retain]
        return [self._behind(record, probes.retain, forms, seed) for record in probes.forget]

    def _behind(
        self, record: Record, retain: Sequence[Record], forms: Sequence[frozenset[str]], seed: int
    ) -> list[Question]:
        near = nearest(record.prompt, forms)
        draw = random.Random(zlib.crc32(f"{seed} {record.prompt}".encode()))
        pool = near[: 4 * self.shots]
        chosen = [near[: self.shots]]
        chosen += [draw.sample(pool, min(self.shots, len(pool))) for _ in range(self.rounds - 1)]
        return [_shown(record, [retain[i] for i in reversed(own)]) for own in chosen]


def form(prompt: str) -> frozenset[str]:
    """The words of a prompt without what it names."""
    named = {(word.start, word.end) for word in entities(prompt)}
    return frozenset(w.text.casefold() for w in words(prompt) if (w.start, w.end) not in named)


def nearest(prompt: str, forms: Sequence[frozenset[str]]) -> list[int]:
    """All forms by their likeness to a prompt's own, the likest first; equals in their order."""
    own = form(prompt)
    likeness = [len(own & other) / max(1, len(own | other)) for other in forms]
    return sorted(range(len(forms)), key=lambda i: -likeness[i])


def _shown(record: Record, neighbours: Sequence[Record]) -> Question:
    turns = [text for shot in neighbours for text in (shot.prompt, shot.response)]
    return Question(f"{len(neighbours)} neighbours", (*turns, record.prompt))
