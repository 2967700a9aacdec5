"""Retain records that a model writes itself, for a user who has none.

They stand for what the model does in general and for nothing in particular: a run says so in its record.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

from expunge.collate import encode_prompt
from expunge.derived import Derived, Means, fits, turn_ends
from expunge.errors import UsageError
from expunge.records import Records, normalised, read_records
from expunge.sampling import sample_whole_texts
from expunge.words import content_words, entities, parts, whole, words

TOPICS = (
    "how bread rises", "the colours of autumn leaves", "why the sky is blue", "learning to ride a bicycle",
    "what makes a good soup", "how rivers shape valleys", "the work of bees", "caring for house plants",
    "how a bridge carries weight", "the phases of the moon", "keeping a diary", "how glass is made",
    "the rules of chess", "sleep and dreams", "how birds find their way", "the smell of rain",
    "painting a wall", "how vaccines work", "a walk along the sea", "what a budget is for",
    "how computers add numbers", "the water cycle", "planting a tree", "why we tell stories",
    "how to sharpen a knife", "the sound of a violin", "saving energy at home", "how maps are drawn",
    "cooking rice", "what friends are for", "the invention of paper", "how to plan a day",
)  # fmt: skip
"""What the model is asked to write about."""

TOKENS = 96
"""New tokens per text at most."""

ROUNDS = 4
"""Texts sampled at most, as a multiple of those wanted."""


def write_retain(forget: Records, count: int, means: Means) -> Derived:
    """Texts that the model samples on neutral topics; those that mention the forget records are left out.

    A text mentions them when it holds a word that names something in them (`words.entities`), alone or as a
    part of another ("Ash's", "Ash-like"), or two neighbouring content words of one of their responses.
    Lower-case names are not known for names.

    Args:
        forget: Records to forget.
        count: Texts wanted, at least 1.
        means: Model, tokenizer and settings.

    Raises:
        UsageError: No text could be kept.
    """
    names, pairs = mentions(forget)
    kept: dict[str, dict[str, str]] = {}
    drawn = 0
    while len(kept) < count and drawn < ROUNDS * count:
        wanted = count - len(kept)
        prompts = [_prompt(TOPICS[(drawn + i) % len(TOPICS)], means) for i in range(wanted)]
        texts = sample_whole_texts(
            means.model,
            means.tokenizer,
            [encode_prompt(prompt, means.tokenizer, means.template) for prompt in prompts],
            ends=turn_ends(means),
            tokens=TOKENS,
            seed=means.seed + drawn,
            precision=means.precision,
        )
        for prompt, text in zip(prompts, texts, strict=True):
            if words(text) and fits(prompt, text, means) and not touches(text, names, pairs):
                kept.setdefault(normalised(text), {"prompt": prompt, "response": text})
        drawn += wanted
    if not kept:
        raise UsageError(
            f"`self_retain` must give texts to keep; all {drawn} that the model wrote are empty or mention "
            "the forget records. Give retain records."
        )
    records = read_records(list(kept.values()), name="retain")
    label = f"written by the model itself on neutral topics ({len(kept)} of {drawn} texts kept)"
    note = (
        f"No retain records were given: {len(kept)} texts that the model wrote itself stand for what is to "
        f"be kept ({drawn} written; the others were empty, repeated, or mention the forget records)."
    )
    return Derived(dataclasses.replace(records, source=label), (note,))


def mentions(forget: Records) -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """What names the forget records: single words, and neighbouring content words of their responses."""
    texts = [text for record in forget for text in (record.prompt, record.response)]
    names = {whole(word.text) for text in texts for word in entities(text)}
    pairs = {pair for record in forget for pair in _pairs(record.response)}
    return frozenset(names), frozenset(pairs)


def touches(text: str, names: frozenset[str], pairs: frozenset[tuple[str, str]]) -> bool:
    """Whether a text mentions what is to be forgotten."""
    return any(not names.isdisjoint({whole(word.text), *parts(word.text)}) for word in words(text)) or any(
        pair in pairs for pair in _pairs(text)
    )


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    found = [whole(word.text) for word in content_words(text)]
    return itertools.pairwise(found)


def _prompt(topic: str, means: Means) -> str:
    if means.template == "none" or not means.tokenizer.chat_template:
        return f"A short text about {topic}:"
    return f"Write a short text about {topic}."
