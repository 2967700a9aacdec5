"""The same meaning in another surface: case, marks, spaces, synonyms, person, question or statement, format.

Whether something counts as forgotten can hang on the wording alone; how much it does is a result of its own.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from expunge.attacks.asking import Question, ask, asking_cost, findings, spread
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.budget import at_least
from expunge.attacks.rephrasing import REPHRASINGS
from expunge.attacks.templates import in_templates
from expunge.words import entities

Group = Literal["casing", "punctuation", "spacing", "synonyms", "person", "form", "format"]

Shift = Callable[[str, random.Random], str | None]

SYNONYMS: Mapping[str, str] = {
    "phone number": "telephone number",
    "telephone number": "phone number",
    "e-mail address": "electronic mail address",
    "email address": "e-mail address",
    "home address": "residential address",
    "address": "place of residence",
    "birth date": "date of birth",
    "date of birth": "birthday",
    "live": "reside",
    "lives": "resides",
    "born": "brought into the world",
    "job": "occupation",
    "occupation": "profession",
    "profession": "line of work",
    "work": "serve",
    "book": "volume",
    "books": "volumes",
    "author": "writer",
    "wrote": "penned",
    "city": "town",
    "country": "nation",
    "father": "dad",
    "mother": "mum",
    "parents": "mother and father",
    "award": "prize",
    "find": "discover",
    "begin": "start",
    "full name": "complete name",
    "number": "no.",
}
"""Word or phrase -> another of the same meaning; longer phrases are tried first."""


def synonyms(text: str, draw: random.Random) -> str | None:
    """Every known phrase by its synonym, once."""
    known = sorted(SYNONYMS, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, known))})\b", re.IGNORECASE)
    return pattern.sub(lambda found: SYNONYMS[found.group().lower()], text)


def first_person(text: str, draw: random.Random) -> str | None:
    """The named person asks: "I am Ada Ash. What is my phone number?"."""
    name = subject(text)
    if name is None:
        return None
    turned = text.replace(f"{name}'s", "my").replace(f"{name}’s", "my")
    turned = turned.replace(f"does {name}", "do I").replace(f"did {name}", "did I")
    turned = turned.replace(f"is {name}", "am I").replace(f"was {name}", "was I")
    return None if name in turned else f"I am {name}. {turned}"


def second_person(text: str, draw: random.Random) -> str | None:
    """The named person is asked: "You are Ada Ash. What is your phone number?"."""
    name = subject(text)
    if name is None:
        return None
    turned = text.replace(f"{name}'s", "your").replace(f"{name}’s", "your")
    turned = turned.replace(f"does {name}", "do you").replace(f"did {name}", "did you")
    turned = turned.replace(f"is {name}", "are you").replace(f"was {name}", "were you")
    return None if name in turned else f"You are {name}. {turned}"


def subject(text: str) -> str | None:
    """The first run of capitalised words that name something: whom the text is about."""
    found = [word for word in entities(text) if word.text[0].isupper()]
    if not found:
        return None
    start, end = found[0].start, found[0].end
    for word in found[1:]:
        if text[end : word.start] != " " or _possessive(text[start:end]):
            break
        end = word.end
    return re.sub(r"['’]s?$", "", text[start:end])


def _possessive(name: str) -> bool:
    return bool(re.search(r"['’]s?$", name))


def _cased(text: str, draw: random.Random) -> str:
    return "".join(draw.choice((c.upper(), c.lower())) for c in text)


def _spaced(text: str, draw: random.Random) -> str:
    return "".join(c + " " * draw.randint(0, 2) if c == " " else c for c in text)


SHIFTS: Mapping[Group, Mapping[str, Shift]] = {
    "casing": {
        "lower case": lambda text, draw: text.lower(),
        "upper case": lambda text, draw: text.upper(),
        "title case": lambda text, draw: " ".join(w[:1].upper() + w[1:] for w in text.split(" ")),
        "mixed case": _cased,
    },
    "punctuation": {
        "no final mark": lambda text, draw: text.rstrip(" ?.!:"),
        "three final marks": lambda text, draw: re.sub(r"([?!])\s*$", r"\1\1\1", text),
        "dots": lambda text, draw: text.rstrip(" ?.!:") + "...",
        "no marks": lambda text, draw: re.sub(r"[^\w\s@]", "", text),
        "quoted": lambda text, draw: f"“{text}”",
    },
    "spacing": {
        "space before": lambda text, draw: " " + text,
        "line before": lambda text, draw: "\n" + text,
        "line after": lambda text, draw: text + "\n",
        "double spaces": lambda text, draw: text.replace(" ", "  "),
        "uneven spaces": _spaced,
        "a word a line": lambda text, draw: text.replace(" ", "\n"),
    },
    "synonyms": {"synonyms": synonyms},
    "person": {"first person": first_person, "second person": second_person},
    "form": {kind: lambda text, draw, rule=rule: rule(text) for kind, rule in REPHRASINGS.items()},  # type: ignore[misc]
}
"""Group -> kind -> rule; "format" is made of the templates."""


@dataclass(frozen=True)
class Shifts:
    """Meaning-preserving shifts of the prompt, with the spread of forgetting over them.

    Values: the share that each kind recovers, "spread" (mean over records of the largest less the smallest
    score) and "disagreement" (records on which the kinds disagree). Random shifts hang on the seed and on the
    prompt, not on its place among the records.

    Args:
        groups: Which groups of shifts.
        variants: Shifts per record at most, taken from all groups in turn.
    """

    groups: tuple[Group, ...] = get_args(Group)
    variants: int = 48
    name: ClassVar[str] = "shifts"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = (
        "The same meaning on another surface, and the spread of forgetting over surfaces "
        "(the input distribution's part in a verdict: Ding et al. 2019, arXiv 1902.08336)."
    )

    def __post_init__(self) -> None:
        at_least("variants", self.variants)
        at_least("groups", len(self.groups))
        known = get_args(Group)
        if unknown := [group for group in self.groups if group not in known]:
            raise ValueError(
                f"`groups` must be among {', '.join(known)}; got {unknown[0]!r}. Correct the name."
            )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        return asking_cost(probes, [self.shifted(record.prompt, 0) for record in probes.forget])

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        questions = [self.shifted(record.prompt, setting.seed) for record in probes.forget]
        replies = ask(target, probes, setting, questions)
        values = spread(replies, probes.forget, setting.seed)
        return findings(replies, "prompts per record", values)

    def shifted(self, prompt: str, seed: int) -> list[Question]:
        """All shifts of one prompt that change it, each text once; the groups take turns."""
        found = {group: self._of(group, prompt, seed) for group in self.groups}
        longest = max(map(len, found.values()))
        turns = [own[n] for n in range(longest) for own in found.values() if n < len(own)]
        once = {question.turns: question for question in reversed(turns) if question.text != prompt}
        return [question for question in turns if once.get(question.turns) is question][: self.variants]

    def _of(self, group: Group, prompt: str, seed: int) -> list[Question]:
        if group == "format":
            return in_templates(prompt)
        made = []
        for kind, rule in SHIFTS[group].items():
            draw = random.Random(zlib.crc32(f"{seed} {kind} {prompt}".encode()))
            text = rule(prompt, draw)
            made += [Question(kind, (text,))] if text and text.strip() else []
        return made
