"""Text from models and data, made safe to look at; escaping it for HTML is the template's work."""

from __future__ import annotations

import unicodedata
from typing import Any, TypeVar

from expunge.record import Entry

# Joiners shape letters in Persian, Indic scripts and emoji, and neither hide nor reorder anything.
_HARMLESS = frozenset("\n\t\u200c\u200d")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_CLIP = 1200

E = TypeVar("E", bound=Entry)


def visible(text: str) -> str:
    """Write out control and bidirectional formatting characters as their code points, e.g. `⟨U+202E⟩`.

    A browser would act on them: an override reverses what follows, a zero-width space hides a difference.
    Line feed and tab stay, and so do the two joiners that ordinary writing needs.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written_out(character) for character in text.replace("\r\n", "\n"))


def _written_out(character: str) -> str:
    noncharacter = ord(character) & 0xFFFE == 0xFFFE
    if character in _HARMLESS or not (noncharacter or unicodedata.category(character) in _INVISIBLE):
        return character
    return f"⟨U+{ord(character):04X}⟩"


def legible(record: E) -> E:
    """The same record with every string and every key passed through `visible`."""
    return type(record).model_validate(_map_strings(record.model_dump()))


def _map_strings(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_map_strings(key): _map_strings(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_map_strings(item) for item in value]
    return value


def clip(text: str, limit: int = _CLIP) -> tuple[str, int]:
    """The first `limit` characters of `text`, and how many were left out."""
    return text[:limit], max(0, len(text) - limit)


def label(text: str, limit: int = 24) -> str:
    """`text` on one line and short enough for the inside of a picture; never empty."""
    line = " ".join(text.split()) or "(no name)"
    return line if len(line) <= limit else line[: limit - 1] + "…"
