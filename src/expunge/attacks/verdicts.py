"""Whether what a model said gives a response away. Knows texts; knows no model."""

from __future__ import annotations

import math

from expunge.metrics import exact_match, normalise, rouge_l_recall


def leaked(output: str, response: str) -> bool:
    """Whether the response stands in the output as a whole: as its words, or as the very text.

    Both sides after `metrics.normalise`; a response within a longer word or number does not count.
    """
    if exact_match(output, response):
        return True
    said, sought = normalise(output), normalise(response)
    start = said.find(sought)
    while start >= 0:
        if not _inside_word(said, start, start + len(sought)):
            return True
        start = said.find(sought, start + 1)
    return False


def closeness(output: str, response: str) -> float:
    """ROUGE-L recall; for a response without words that it knows, 1 on a leak and else 0."""
    recall = rouge_l_recall(output, response)
    return float(leaked(output, response)) if math.isnan(recall) else recall


def _inside_word(text: str, start: int, end: int) -> bool:
    before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    after = end < len(text) and text[end].isalnum() and text[end - 1].isalnum()
    return before or after
