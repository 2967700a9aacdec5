"""A synthetic holdout: records like those to forget, about nobody.

Records that a model has never seen tell when enough is forgotten, and few requests come with any. So names
and numbers of the forget records are drawn anew, from what stands in such places of the retain records; words
that make up the form of a text stay. On LUME Task 2 and TOFU the result is a little likelier than records
that the model was never taught, and stays so while it forgets (docs/results.md).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expunge.records import Record
from expunge.words import entities, words

FORM = 0.1
"""A word in a larger share of both the forget and the retain records belongs to their form, and stays."""
ENOUGH = 10
"""Retain records from which forms and names can be told."""
ATTEMPTS = 8
CHOICES = 2
"""Names, or digits whether alike or not, wanted of a kind of place before a wider kind is looked at."""

_PIECE = re.compile(r"[^\W\d_]+|[0-9]+|\s+|.", re.DOTALL)
_REACH = 8
"""Pieces around a number that tell what number it is."""
_SHORT = 2
"""Digits of a number that is drawn whole: months and days stay such."""

Place = tuple[str, ...]
"""Where something stands: its shape and what is around it."""


def synthetic_holdout(
    chosen: Sequence[Record], forget: Sequence[Record], retain: Sequence[Record], seed: int
) -> list[Record | None]:
    """A record for each one given, with other names and numbers.

    Names are those of `words.entities`, written large. A name gets the same substitute throughout its
    record, also where it stands small in an address. The prompt must name somebody, and then names nobody
    that a known record does: each name is known, their order is not.

    Args:
        chosen: Records to forget that want a twin.
        forget: All records to forget, of earlier requests too.
        retain: Records to keep: they lend names and numbers.
        seed: Of the draws.

    Returns:
        One per chosen record. None where the prompt names nobody, the response would stay, or the retain
        records are fewer than ten or speak otherwise, so that nobody new can be named in this form.
    """
    if len(retain) < ENOUGH:
        return [None] * len(chosen)
    world, draw = _World(forget, retain), random.Random(seed)
    return [world.twin(record, draw) for record in chosen]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a text: to be kept, or to be drawn anew part by part, each by its places, narrow ones first."""

    text: str
    parts: tuple[tuple[str, tuple[Place, ...]], ...] = ()

    @property
    def is_name(self) -> bool:
        return bool(self.parts) and not self.text.isdigit()


class _World:
    """Names and numbers of the records that are known, and where they stand."""

    def __init__(self, forget: Sequence[Record], retain: Sequence[Record]) -> None:
        self._names = _names(forget, retain)
        self._found: dict[Place, Counter[str]] = defaultdict(Counter)
        self._somebody: set[str] = set()
        for text in _texts([*forget, *retain]):
            self._somebody |= set(_runs(self._read(text)))
        for text in _texts(retain):
            for part, places in (pair for piece in self._read(text) for pair in piece.parts):
                for place in places:
                    self._found[place][part] += 1

    def twin(self, record: Record, draw: random.Random) -> Record | None:
        """The record with names and numbers drawn anew, about nobody known."""
        prompt, response = self._read(record.prompt), self._read(record.response)
        own = {piece.text.casefold() for piece in (*prompt, *response)}
        for _ in range(ATTEMPTS):
            substitutes: dict[str, str] = {}
            asked = self._rewritten(prompt, own, substitutes, draw, narrow=True)
            told = self._rewritten(response, own, substitutes, draw, narrow=False)
            if asked is None or told is None:
                return None
            if told == _nfc(record.response):
                continue
            named = list(_runs(self._read(asked)))
            if any(run not in self._somebody for run in named) and not any(
                " " in run and run in self._somebody for run in named
            ):
                return Record(asked, told)
        return None

    def _rewritten(
        self,
        pieces: Sequence[_Piece],
        own: set[str],
        substitutes: dict[str, str],
        draw: random.Random,
        *,
        narrow: bool,
    ) -> str | None:
        """The text anew; None where nothing can stand for a part. `narrow`: names of like sentences alone."""
        written = []
        for piece in pieces:
            word = piece.text.casefold()
            if piece.parts and word not in substitutes:
                drawn = [self._drawn(p, own, draw, narrow=narrow and piece.is_name) for _, p in piece.parts]
                if None in drawn:
                    return None
                substitutes[word] = "".join(map(str, drawn))
            written.append(_in_case_of(piece.text, substitutes[word]) if piece.parts else piece.text)
        return "".join(written)

    def _drawn(
        self, places: Sequence[Place], own: set[str], draw: random.Random, *, narrow: bool
    ) -> str | None:
        """What stands in such a place elsewhere: of the narrowest kind of place that offers enough."""
        best: list[str] = []
        for place in places:
            if narrow and len(place) == 1:
                break
            counts = self._found.get(place, Counter())
            found = [one for one in counts if one.casefold() not in own or one.isdigit()]
            best = max(best, found, key=len)
            if len(best) >= CHOICES or (best and best[0].isdigit() and counts.total() >= CHOICES):
                return draw.choices(best, [counts[one] for one in best])[0]
        return draw.choice(best) if best else None

    def _read(self, text: str) -> list[_Piece]:
        pieces = _PIECE.findall(_nfc(text))
        kinds = [self._kind(piece) for piece in pieces]
        return [
            _Piece(piece, _numbers(kinds, i, piece)) if _is_number(piece)
            else _Piece(piece, ((piece, _name_places(kinds, i)),)) if piece.casefold() in self._names
            else _Piece(piece)
            for i, piece in enumerate(pieces)
        ]  # fmt: skip

    def _kind(self, piece: str) -> str:
        """What a piece is for what stands beside it."""
        if _is_number(piece):
            return "0" * len(piece)
        return _shape(piece) if piece.casefold() in self._names else piece.casefold()


def _numbers(kinds: Sequence[str], i: int, piece: str) -> tuple[tuple[str, tuple[Place, ...]], ...]:
    """A number's parts: a short one as a whole, of a long one each digit."""
    before, behind = i, i + 1
    while before > max(0, i - _REACH) and not kinds[before - 1].isspace():
        before -= 1
    while behind < min(len(kinds), i + _REACH) and not kinds[behind].isspace():
        behind += 1
    mask, first = "".join(kinds[before:behind]), i - before
    parts = [piece] if len(piece) <= _SHORT else list(piece)
    return tuple(
        (part, (("0", mask, f"{first}.{k}"), ("0", f"{len(piece)}.{k}"), (f"0{len(part)}",)))
        for k, part in enumerate(parts)
    )


def _name_places(kinds: Sequence[str], i: int) -> tuple[Place, ...]:
    shape, near, far = kinds[i], "".join(kinds[max(0, i - 2) : i]), "".join(kinds[max(0, i - 4) : i])
    behind = "".join(kinds[i + 1 : i + 3])
    return tuple(dict.fromkeys([(shape, far, behind), (shape, near, behind), (shape, near), (shape,)]))


def _names(forget: Sequence[Record], retain: Sequence[Record]) -> set[str]:
    """Words that name something and are no part of the form, in small letters."""
    large, small, naming = Counter[str](), Counter[str](), set[str]()
    for text in map(_nfc, _texts([*forget, *retain])):
        naming.update(
            part for word in entities(text) for part in _PIECE.findall(word.text) if part[0].isupper()
        )
        small.update(word.text for word in words(text) if word.text.islower())
        large.update(piece.casefold() for piece in _PIECE.findall(text) if piece[0].isupper())
    usual = _form(forget) & _form(retain)
    found = {word.casefold() for word in naming} - usual
    return {word for word in found if small[word] <= large[word] / 5}


def _form(records: Sequence[Record]) -> set[str]:
    """Words in so large a share of the records that they may be nobody's."""
    count = Counter(
        word
        for record in records
        for word in {p.casefold() for t in _texts([record]) for p in _PIECE.findall(t)}
    )
    return {word for word, times in count.items() if times > FORM * len(records)}


def _runs(pieces: Sequence[_Piece]) -> Iterator[str]:
    """Names that stand together, as one: whole names of somebody."""
    run: list[str] = []
    for piece in (*pieces, _Piece("")):
        if piece.is_name:
            run.append(piece.text.casefold())
        elif run and (not piece.text.isspace() and piece.text != "-"):
            yield " ".join(run)
            run = []


def _texts(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        yield record.prompt
        yield record.response


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _is_number(piece: str) -> bool:
    return piece.isascii() and piece.isdigit()


def _shape(word: str) -> str:
    return "AA" if len(word) > 1 and word.isupper() else "Aa" if word[0].isupper() else "aa"


def _in_case_of(model: str, word: str) -> str:
    """A word written large or small as another is; a number as it stands."""
    if _is_number(word):
        return word
    return {"AA": word.upper(), "Aa": word[:1].upper() + word[1:], "aa": word.lower()}[_shape(model)]
