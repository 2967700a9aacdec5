"""Which response tokens an objective counts: pluggable rules, each run once before training.

`SELECTORS` maps names to rules. A rule of one's own is a function from `Response`s to one boolean per label
token and row; enter it under a name, or give an objective `selector="path/to/file.py:name"`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.attribution import attributions
from expunge.collate import Encoded
from expunge.errors import UsageError
from expunge.extension import load_object
from expunge.words import Word, content_words, covering, entities, token_spans

SHARE = 0.5
"""Share of a response's tokens that `attribution` takes."""


@dataclass(frozen=True)
class Responses:
    """What a selector may read.

    Args:
        rows: Encoded records.
        tokenizer: The model's.
        model: At the start of the run, in evaluation mode or not.
        pad_id: Fills batches.
        precision: Of forward passes.
    """

    rows: Sequence[Encoded]
    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    pad_id: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"


Choice = npt.NDArray[np.bool_]
Selector = Callable[[Responses], Sequence[Choice]]


def select(name: str, responses: Responses) -> list[Choice]:
    """Run a selector. A row in which it finds nothing counts whole, so that no row drops out unseen.

    Raises:
        ValueError: The rule does not give one boolean per label token of every row.
        UsageError: There is no such rule.
    """
    chosen = [np.asarray(choice, dtype=bool) for choice in find_selector(name)(responses)]
    wanted = [len(row.labels) for row in responses.rows]
    if [len(choice) for choice in chosen] != wanted:
        raise ValueError(f"selector {name!r} must give one boolean per label token of every row; it did not.")
    return [choice if choice.any() else np.ones_like(choice) for choice in chosen]


def find_selector(name: str) -> Selector:
    """A rule by its name, or by file or module and name.

    Raises:
        UsageError: There is no such rule.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    found = load_object(name, "selector", SELECTORS)
    if not callable(found):
        raise UsageError(f"selector {name!r} must be a function of Responses; it is {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def all_tokens(responses: Responses) -> list[Choice]:
    """Every response token and the token that ends the turn."""
    return [np.ones(len(row.labels), dtype=bool) for row in responses.rows]


def content(responses: Responses) -> list[Choice]:
    """Tokens of words that are not function words."""
    return _by_words(responses, content_words)


def named(responses: Responses) -> list[Choice]:
    """Tokens of names and numbers, by the stated rule of `words.entities`."""
    return _by_words(responses, entities)


def spacy_named(responses: Responses) -> list[Choice]:
    """Tokens of the entities that spaCy's en_core_web_sm finds; needs spacy."""
    try:
        recognise: Any = importlib.import_module("spacy").load("en_core_web_sm")
    except (ImportError, OSError):
        raise UsageError(
            "selector 'spacy-entities' needs spacy and its model: pip install spacy; "
            "python -m spacy download en_core_web_sm. Or use selector 'entities'."
        ) from None

    def found(text: str) -> list[Word]:
        return [Word(e.text, e.start_char, e.end_char) for e in recognise(text).ents]

    return _by_words(responses, found)


def influential(responses: Responses) -> list[Choice]:
    """The half of the response tokens on which the answer's log-probability leans most.

    By the size of their integrated gradients. The token that ends the turn has nothing after it and so no
    attribution of its own; it is never taken while others are.
    """
    found = attributions(responses.model, responses.rows, baseline=int(responses.tokenizer.eos_token_id or 0))
    chosen = []
    for row, scores in zip(responses.rows, found, strict=True):
        size = np.abs(scores[row.prompt_length :])
        choice = np.zeros(len(size), dtype=bool)
        choice[np.argsort(-size, kind="stable")[: max(1, round(SHARE * len(size)))]] = True
        chosen.append(choice)
    return chosen


SELECTORS: dict[str, Selector] = {
    "all": all_tokens,
    "content-words": content,
    "entities": named,
    "spacy-entities": spacy_named,
    "attribution": influential,
}


def _by_words(responses: Responses, rule: Callable[[str], list[Word]]) -> list[Choice]:
    chosen = []
    for row in responses.rows:
        text, spans = token_spans(row.labels, responses.tokenizer)
        chosen.append(np.array(covering(spans, rule(text), text), dtype=bool))
    return chosen
