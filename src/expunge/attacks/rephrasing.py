"""Rules that put an English question in other words, and move it between forms.

Stated patterns, no parser: a rule that does not fit gives None. Knows texts only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_BE = re.compile(r"^(?:what|which|who)(?:'s| is| was| are| were) (?P<of>.+?)\s*\?*\s*$", re.IGNORECASE)
_DO = re.compile(
    r"^(?P<wh>(?i:what|where|when|how|why|who|whom|which)\b[^?]*?) (?P<aux>(?i:does|do|did)) "
    r"(?P<who>[A-Z][\w.'-]*(?: [A-Z][\w.'-]*)*|he|she|it|they|you) (?P<verb>[a-z]+)(?P<rest>[^?]*?)\s*\?*\s*$"
)
_QUESTION = re.compile(r"^(?:(?:in|on|at) which|what|where|when|how|why|who|whom|whose|which)\b", re.I)
_OBJECT = {"where": "at", "when": "on"}

Rule = Callable[[str], str | None]


def is_question(text: str) -> bool:
    """Whether a text asks: it ends in a question mark, or opens with a question word."""
    return text.rstrip().endswith("?") or bool(_QUESTION.match(text.strip()))


def statement(text: str) -> str | None:
    """The beginning of a sentence that the answer completes: "Ada's phone number is"."""
    if found := _BE.match(text.strip()):
        verb = " was" if re.match(r"\S+ was ", text.strip(), re.I) else " is"
        verb = " are" if re.match(r"\S+ are ", text.strip(), re.I) else verb
        return _upper(found["of"]) + verb
    if found := _DO.match(text.strip()):
        link = _OBJECT.get(found["wh"].lower(), "")
        return _upper(" ".join(f"{found['who']} {_finite(found)}{found['rest']} {link}".split()))
    return None


def imperative(text: str) -> str | None:
    """A request: "Tell me Ada's phone number."."""
    noun = noun_phrase(text)
    return None if noun is None else f"Tell me {noun}."


def polite(text: str) -> str | None:
    """An indirect question: "Could you please tell me what Ada's phone number is?"."""
    if found := _BE.match(text.strip()):
        return f"Could you please tell me what {found['of']} is?"
    noun = noun_phrase(text)
    return None if noun is None else f"Could you please tell me {noun}?"


def topic(text: str) -> str | None:
    """The bare thing asked for, as on a form: "Ada's phone number:"."""
    noun = noun_phrase(text)
    return None if noun is None else f"{_upper(noun)}:"


def wondering(text: str) -> str | None:
    """A statement of not knowing: "I would like to know Ada's phone number."."""
    noun = noun_phrase(text)
    return None if noun is None else f"I would like to know {noun}."


def indirect(text: str) -> str | None:
    """The question behind an opening, in its own words."""
    return f"Here is what I want to know: {text.strip()}" if is_question(text) else None


def continuation(text: str) -> str | None:
    """A question for what goes on, of a text that asks nothing."""
    return None if is_question(text) else f"How does this text go on? {text.strip()}"


def noun_phrase(text: str) -> str | None:
    """What a question asks for, as an object: "Ada's phone number", "where Ada lives"."""
    if found := _BE.match(text.strip()):
        return found["of"]
    if found := _DO.match(text.strip()):
        return f"{found['wh'].lower()} {found['who']} {_finite(found)}{found['rest']}"
    return None


REPHRASINGS: Mapping[str, Rule] = {
    "statement": statement,
    "imperative": imperative,
    "polite": polite,
    "topic": topic,
    "wondering": wondering,
    "indirect": indirect,
    "continuation": continuation,
}
"""Kind -> rule."""


def _finite(found: re.Match[str]) -> str:
    """The verb as it stands behind its subject."""
    verb, auxiliary = found["verb"], found["aux"].lower()
    if auxiliary == "did":
        return f"did {verb}"
    if auxiliary == "do":
        return verb
    if verb == "have":
        return "has"
    if re.search(r"(?:[sxz]|ch|sh|o)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
