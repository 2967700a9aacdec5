"""Which runs of words a generation shares with the true response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

SHORTEST = 3
# One word, or one character of a script that is written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W_]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a generation; `shared` when it also stands in the true response."""

    text: str
    shared: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """A generation cut into pieces, and how many words the shared ones hold (at most the response's number).

    The pieces' texts concatenate to the generation.
    """

    pieces: tuple[Piece, ...]
    shared_words: int
    response_words: int


def overlap(response: str, generation: str, prompt: str = "", *, shortest: int = SHORTEST) -> Overlap:
    """Mark every run of words that `generation` shares with `response`.

    Words are compared without case and punctuation, wherever they stand. A run counts when at least
    `shortest` of its words do not stand in the prompt (words that the prompt gives away show nothing); for a
    response with fewer such words, when it holds all of them. What the prompt says already is never marked.
    """
    told = set(_folded(_WORD.findall(prompt)))
    truth, matches = _folded(_WORD.findall(response)), list(_WORD.finditer(generation))
    said = _folded([match.group() for match in matches])
    needed = max(1, min(shortest, sum(word not in told for word in truth)))
    runs = [
        run
        for run in _runs(truth, said, needed)
        if sum(word not in told for word in said[slice(*run)]) >= needed
    ]
    marked = sum(stop - start for start, stop in runs)
    spans = [(matches[start].start(), matches[stop - 1].end()) for start, stop in runs]
    return Overlap(_cut(generation, spans), min(marked, len(truth)), len(truth))


def _folded(words: Sequence[str]) -> list[str]:
    return [word.casefold() for word in words]


def _runs(truth: Sequence[str], said: Sequence[str], needed: int) -> list[tuple[int, int]]:
    """Common runs of at least `needed` words in `said`, the longest first; anywhere in `truth`."""
    matcher = SequenceMatcher(None, truth, said, autojunk=False)
    runs, open_stretches = [], [(0, len(said))]
    while open_stretches:
        low, high = open_stretches.pop()
        found = matcher.find_longest_match(0, len(truth), low, high)
        if found.size >= needed:
            runs.append((found.b, found.b + found.size))
            open_stretches += [(low, found.b), (found.b + found.size, high)]
    return runs


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Piece, ...]:
    inside = [False] * len(text)
    for start, stop in spans:
        inside[start:stop] = [True] * (stop - start)
    pieces = groupby(range(len(text)), key=inside.__getitem__)
    return tuple(Piece("".join(text[i] for i in group), shared) for shared, group in pieces)
