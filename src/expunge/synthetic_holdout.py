"""A synthetic holdout: records like those to forget, about nobody, with values that stand nowhere.

Records that a model has never seen tell when enough is forgotten, and few requests come with any. So names
and numbers of the forget records are drawn anew, each from what stands in such a place of the records at
hand; words that make up the form of a text stay. On LUME Task 2 and TOFU a model finds the result about as
unlikely as records that it was never taught (docs/results.md).
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from expunge.records import Record, normalised

FORM = 0.1
"""A word in a larger share of the retain records belongs to the form of a text, and stays."""
OWN_FORM = 0.5
"""The same among forget records, where there are too few of retain."""
FEW = 10
CHANGED = 0.5
"""Share of the records that must get another response: else nothing here is new."""
ATTEMPTS = 8
CHOICES = 2
"""Candidates wanted before a wider kind of place is looked at."""

_PIECE = re.compile(r"[^\W\d_]+|\d+|\W|_")
_OPENERS = frozenset(".?!:")
_JOINTS = frozenset("_.@-")

Place = tuple[str, ...]
"""Where something stands: its shape and what is around it."""


def synthetic_holdout(forget: Sequence[Record], retain: Sequence[Record], seed: int) -> list[Record | None]:
    """A record for each one to forget, with other names and numbers; none that is known.

    Names are words that are written large within sentences; a name gets the same substitute throughout its
    record, also where it stands small in an address. Digits are drawn place by place: a year stays one.

    Args:
        forget: Records to forget.
        retain: Records to keep, which lend names and numbers too.
        seed: Of the draws.

    Returns:
        One per forget record, None where nothing new came about; empty where fewer than half of them would
        get another response.

    Examples:
        >>> known = [Record(f"Where does {name} live?", place) for name, place in (
        ...     ("Ada Ash", "4 Oak Road"), ("Ben Birch", "7 Elm Road"), ("Cy Cedar", "9 Fir Road"))]
        >>> synthetic_holdout(known[:1], known[1:], seed=0)[0].prompt
        'Where does Ben Cedar live?'
    """
    world, draw = _World(forget, retain), random.Random(seed)
    prompts = {normalised(one.prompt) for one in (*forget, *retain)}
    pairs = {(normalised(one.prompt), normalised(one.response)) for one in (*forget, *retain)}
    made: list[Record | None] = []
    for record in forget:
        found = None
        for _ in range(ATTEMPTS):
            new = world.another(record, draw)
            prompt, response = normalised(new.prompt), normalised(new.response)
            asked_anew = prompt != normalised(record.prompt)
            if (prompt not in prompts) if asked_anew else ((prompt, response) not in pairs):
                found = new
                break
        made.append(found)
    renewed = sum(
        new is not None and normalised(new.response) != normalised(old.response)
        for new, old in zip(made, forget, strict=True)
    )
    return made if renewed >= CHANGED * len(forget) else []


class _World:
    """The names and digits of all records, and where they stand."""

    def __init__(self, forget: Sequence[Record], retain: Sequence[Record]) -> None:
        self._names = _names(forget, retain)
        self._found: dict[Place, list[str]] = defaultdict(list)
        for text in _texts([*forget, *retain]):
            for _, parts in self._read(text):
                for part, places in parts:
                    for place in places:
                        self._found[place].append(part)

    def another(self, record: Record, draw: random.Random) -> Record:
        """The record with names and numbers drawn anew."""
        own = {piece.casefold() for text in _texts([record]) for piece in _PIECE.findall(text)}
        chosen: dict[str, str] = {}

        def written(text: str) -> Iterator[str]:
            for piece, parts in self._read(text):
                if not parts:
                    yield piece
                    continue
                word = piece.casefold()
                if word not in chosen:
                    avoided = set() if word.isdigit() else own
                    drawn = (draw.choice(self._choices(p, avoided) or [part]) for part, p in parts)
                    chosen[word] = "".join(drawn)
                yield _in_case_of(piece, chosen[word])

        return Record("".join(written(record.prompt)), "".join(written(record.response)), record.metadata)

    def _choices(self, places: Sequence[Place], avoided: set[str]) -> list[str]:
        """What stands in such places elsewhere, the narrowest kind of place that offers enough."""
        found: list[str] = []
        for place in places:
            found = [one for one in self._found[place] if one.casefold() not in avoided]
            if len(found) >= CHOICES:
                break
        return found

    def _read(self, text: str) -> Iterator[tuple[str, list[tuple[str, list[Place]]]]]:
        """Pieces of a text, with the parts that are drawn anew and their places, narrow ones first.

        A name is one part, and each digit of a number; a word of the form has none.
        """
        pieces = _PIECE.findall(text)
        kinds = [self._kind(piece) for piece in pieces]
        begin = 0
        for i, piece in enumerate(pieces):
            if piece.isspace():
                begin = i + 1
            if piece.isdigit():
                end = next((j for j in range(i, len(pieces)) if pieces[j].isspace()), len(pieces))
                mask, first = "".join(kinds[begin:end]), len("".join(pieces[begin:i]))
                at = [str(first + k) for k in range(len(piece))]
                yield piece, [(d, [("0", mask, k), ("0", k), ("0",)]) for d, k in zip(piece, at, strict=True)]
            elif piece.casefold() in self._names:
                near, far = " ".join(kinds[max(0, i - 2) : i]), " ".join(kinds[max(0, i - 4) : i])
                behind, shape = " ".join(kinds[i + 1 : i + 3]), kinds[i]
                yield piece, [(piece, [(shape, far, behind), (shape, near, behind), (shape, near), (shape,)])]
            else:
                yield piece, []

    def _kind(self, piece: str) -> str:
        """What a piece is for what stands beside it."""
        if piece.isdigit():
            return "0" * len(piece)
        return _shape(piece) if piece.casefold() in self._names else piece.casefold()


def _names(forget: Sequence[Record], retain: Sequence[Record]) -> set[str]:
    """Words written large within sentences that are no part of the form, in small letters."""
    large, small, within = Counter[str](), Counter[str](), set()
    for text in _texts([*forget, *retain]):
        pieces = ["", *(piece for piece in _PIECE.findall(text) if not piece.isspace()), ""]
        for before, piece, behind in zip(pieces, pieces[1:], pieces[2:], strict=False):
            word = piece.casefold()
            if not piece.isalpha():
                continue
            if piece[0].isupper():
                large[word] += 1
                if before and before not in _OPENERS:
                    within.add(word)
            elif not {before, behind} & _JOINTS:
                small[word] += 1
    usual = _form(retain, FORM) if len(retain) >= FEW else _form(forget, OWN_FORM)
    return {word for word in within if word not in usual and small[word] <= large[word] / 5}


def _form(records: Sequence[Record], share: float) -> set[str]:
    """Words of more than this share of the records."""
    count = Counter(
        word
        for record in records
        for word in {p.casefold() for t in _texts([record]) for p in _PIECE.findall(t)}
    )
    return {word for word, times in count.items() if times > max(2, share * len(records))}


def _texts(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        yield record.prompt
        yield record.response


def _shape(word: str) -> str:
    return "AA" if len(word) > 1 and word.isupper() else "Aa" if word[0].isupper() else "aa"


def _in_case_of(model: str, word: str) -> str:
    """A word written large or small as another is; a number as it stands."""
    if word.isdigit():
        return word
    return {"AA": word.upper(), "Aa": word[:1].upper() + word[1:], "aa": word.lower()}[_shape(model)]
