"""The demo's world: fictitious people, seeded, in three groups that share nobody.

In the spirit of LUME's second task (SemEval-2025 Task 4): a short biography to complete, and one
question per attribute. No value can be guessed from another: an e-mail address is made of dictionary
words, not of its owner's name. No value can belong to anybody:

* telephone numbers end in 555-0100 ... 555-0199, kept by the North American Numbering Plan for fiction;
* e-mail domains are example.com, example.net and example.org, kept by RFC 2606 for documentation;
* identity numbers look like 9xx-xx-xxxx. A number of the 900 series is never issued as a US social
  security number (Social Security Administration, POMS RM 10201.035), and the middle digits 01-49 lie
  outside the taxpayer numbers that the revenue service issues from 9xx-50-xxxx on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faker import Faker

from expunge.record import write_atomically

Row = dict[str, str]

_QUESTIONS = {
    "birth_date": "When was {name} born?",
    "phone": "What is {name}'s phone number?",
    "address": "Where does {name} live?",
    "email": "What is {name}'s e-mail address?",
    "identity_number": "What is {name}'s identity number?",
}
_MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
_ATTEMPTS = 10_000


@dataclass(frozen=True)
class World:
    """Rows with the keys `prompt`, `response`, `person` and `attribute`; six rows per person."""

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]


def people(seed: int, forget: int = 6, retain: int = 12, holdout: int = 6) -> World:
    """Fictitious people, the same for the same arguments on every machine (and version of Faker).

    Names, telephone numbers, addresses, e-mail addresses, identity numbers and birth dates are
    distinct across all three groups.

    Args:
        seed: Seed of everything random.
        forget: People to be forgotten.
        retain: People to be kept.
        holdout: People that no model ever sees.

    Raises:
        ValueError: A group has nobody.
    """
    for group, size in (("forget", forget), ("retain", retain), ("holdout", holdout)):
        if size < 1:
            raise ValueError(f"`{group}` must be at least 1. Found `{group} = {size}`.")
    draw = _Draw(seed)
    groups = [[row for _ in range(size) for row in _rows(draw)] for size in (forget, retain, holdout)]
    return World(*groups)


def write_world(world: World, folder: Path) -> dict[str, Path]:
    """Write forget.jsonl, retain.jsonl and holdout.jsonl, each whole or not at all.

    Returns:
        Group name -> path.
    """
    groups = {"forget": world.forget, "retain": world.retain, "holdout": world.holdout}
    return {name: _write_rows(rows, folder / f"{name}.jsonl") for name, rows in groups.items()}


def _write_rows(rows: list[Row], path: Path) -> Path:
    return write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _rows(draw: _Draw) -> list[Row]:
    """One person: the biography row, then one row per question."""
    name = draw.name()
    facts = {
        "birth_date": draw.birth_date(),
        "phone": draw.phone(),
        "address": draw.address(),
        "email": draw.email(name),
        "identity_number": draw.identity_number(),
    }
    begin = f"{name}, born on {facts['birth_date']}, lives at"
    rest = f"{facts['address']}, and answers the phone at {facts['phone']}."
    rows = [{"prompt": begin, "response": rest, "person": name, "attribute": "biography"}]
    for attribute, question in _QUESTIONS.items():
        prompt = question.format(name=name)
        rows.append({"prompt": prompt, "response": facts[attribute], "person": name, "attribute": attribute})
    return rows


class _Draw:
    """A stream of values, no two alike among those of one kind."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._faker = Faker("en_US", use_weighting=False)
        self._faker.seed_instance(seed)
        self._words = sorted(
            {word for word in self._faker.get_words_list() if word.isalpha() and 4 <= len(word) <= 7}
        )
        self._seen: dict[str, set[str]] = {}

    def _fresh(self, kind: str, make: Callable[[], str]) -> str:
        seen = self._seen.setdefault(kind, set())
        for _ in range(_ATTEMPTS):
            value = make()
            if value.casefold() not in seen:
                seen.add(value.casefold())
                return value
        raise ValueError(
            f"There are not enough distinct values of `{kind}`. Found {len(seen)}; ask for fewer people."
        )

    def name(self) -> str:
        return self._fresh("name", lambda: f"{self._faker.first_name()} {self._faker.last_name()}")

    def birth_date(self) -> str:
        def make() -> str:
            day, year = self._random.randint(1, 28), self._random.randint(1940, 2004)
            return f"{self._random.choice(_MONTHS)} {day}, {year}"

        return self._fresh("birth date", make)

    def phone(self) -> str:
        def make() -> str:
            return f"{self._random.randint(201, 989)}-555-01{self._random.randint(0, 99):02d}"

        return self._fresh("phone", make)

    def address(self) -> str:
        def make() -> str:
            number = self._random.randint(10, 999)
            return f"{number} {self._faker.street_name()}, {self._faker.city()}, {self._faker.state_abbr()}"

        return self._fresh("address", make)

    def email(self, owner: str) -> str:
        words = [word for word in self._words if word not in owner.casefold()]

        def make() -> str:
            local = ".".join(self._random.sample(words, 2)) + str(self._random.randint(10, 99))
            return f"{local}@example.{self._random.choice(('com', 'net', 'org'))}"

        return self._fresh("e-mail", make)

    def identity_number(self) -> str:
        def make() -> str:
            area, group = self._random.randint(900, 999), self._random.randint(1, 49)
            return f"{area}-{group:02d}-{self._random.randint(1, 9999):04d}"

        return self._fresh("identity number", make)
