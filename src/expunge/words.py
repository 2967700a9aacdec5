"""Words of a text: which carry content, which name something, and which tokens write them.

Simple, stated rules for English-like text; no dictionary beyond a list of function words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_FUNCTION = """
a about above after again against all also although am an and any are as at be because been before being
below between both but by can could did do does doing down during each either else ever every few for
from further had has have having he her here hers herself him himself his how however i if in into is it
its itself just me might more most much must my myself neither no nor not now of off on once only or
other our ours ourselves out over own per quite rather same shall she should since so some such than
that the their theirs them themselves then there these they this those though through thus to too toward
towards under until up upon us very was we were what when where whether which while who whom whose why
will with within without would yes yet you your yours yourself yourselves
"""

FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""English words that hold sentences together and name nothing."""

_WORD = re.compile(r"[^\W_]+(?:[-.@/_'’][^\W_]+)*")
_JOINT = re.compile(r"[-.@/_'’]+")
_POSSESSIVE = re.compile(r"['’]s?$")
_SENTENCE_END = re.compile(r"[.!?:;\n]\W*$")


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it stands in its text."""

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Runs of letters and digits; inner hyphens, dots, apostrophes, slashes and @ join them."""
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def whole(word: str) -> str:
    """A word as it is compared with others: without case, and without the ending of a possessive."""
    return _POSSESSIVE.sub("", word.casefold())


def parts(word: str) -> list[str]:
    """What inner hyphens, dots, apostrophes, slashes and @ join, without case."""
    return [part for part in _JOINT.split(word.casefold()) if part]


def content_words(text: str) -> list[Word]:
    """Words that are not function words."""
    return [word for word in words(text) if word.text.casefold() not in FUNCTION_WORDS]


def entities(text: str) -> list[Word]:
    """Words that name something.

    A word with a digit or an @; or a capitalised content word that does not open a sentence, or that opens
    one and is followed by another capitalised content word ("Ada Ash lives here").
    """
    found = content_words(text)
    return [word for i, word in enumerate(found) if _names(text, word, found[i + 1 : i + 2])]


def _names(text: str, word: Word, following: Sequence[Word]) -> bool:
    if any(character.isdigit() or character == "@" for character in word.text):
        return True
    if not word.text[0].isupper():
        return False
    opens = not text[: word.start].strip() or bool(_SENTENCE_END.search(text[: word.start]))
    return not opens or any(w.text[0].isupper() and text[word.end : w.start] == " " for w in following)


def token_spans(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """Text of some tokens, and the characters that each of them writes; special tokens write none."""
    special = {*tokenizer.all_special_ids}
    kept: list[int] = []
    spans, length = [], 0
    for token in ids:
        if token in special:
            spans.append((length, length))
            continue
        kept.append(token)
        end = max(length, len(_decode(kept, tokenizer)))
        spans.append((length, end))
        length = end
    return _decode(kept, tokenizer), spans


def covering(spans: Iterable[tuple[int, int]], chosen: Sequence[Word], text: str) -> list[bool]:
    """Which tokens write a part of the chosen words (white space does not count)."""
    return [
        any(text[max(start, word.start) : min(end, word.end)].strip() for word in chosen)
        for start, end in spans
    ]


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
