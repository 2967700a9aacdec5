"""Questions that tell two records apart: written by templates or by a model, kept where a model can answer.

Every question is about the retained record of a pair. Its right answer is that record's, its wrong one the
answer that belongs to the record to forget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from expunge.collate import encode_prompt
from expunge.derived import Means, fits, turn_ends
from expunge.mining import Pair, Reader
from expunge.records import Record, normalised
from expunge.sampling import sample_texts

CONTRAST = "contrast"
"""Field of a record that holds the wrong answer which its response should be told from."""

GENERATED = "generated"
ATTEMPTS = 3

REQUEST = (
    "Fact: {prompt} {response}\nOther fact: {other_prompt} {other_response}\n"
    "Write one question about the first fact. Its answer must be: {response}"
)
OPENING = "Question:"


@dataclass(frozen=True, slots=True)
class Draft:
    """A question, its right answer and a wrong one.

    Attributes:
        pair: Whom it tells apart.
        template: How it came about.
    """

    prompt: str
    right: str
    wrong: str
    template: str
    pair: Pair


Wording = tuple[str, str, str]
"""Prompt, right answer, wrong answer."""


def _direct(forget: Record, kept: Record, _flip: bool) -> list[Wording]:
    return [(kept.prompt, kept.response, forget.response)]


def _choice(forget: Record, kept: Record, flip: bool) -> list[Wording]:
    first, second = (kept.response, forget.response)[:: -1 if flip else 1]
    return [(f"{kept.prompt} Is it {first} or {second}?", kept.response, forget.response)]


def _correction(forget: Record, kept: Record, _flip: bool) -> list[Wording]:
    return [
        (f"{kept.prompt} It is not {forget.response}. What is it?", kept.response, forget.response),
    ]


def _aside(forget: Record, kept: Record, _flip: bool) -> list[Wording]:
    return [(f"Leave this aside: {forget.prompt} Answer this: {kept.prompt}", kept.response, forget.response)]


def _verify(forget: Record, kept: Record, _flip: bool) -> list[Wording]:
    return [
        (f"{kept.prompt} Is this right: {kept.response}?", "Yes", "No"),
        (f"{kept.prompt} Is this right: {forget.response}?", "No", "Yes"),
    ]


TEMPLATES: Mapping[str, Callable[[Record, Record, bool], list[Wording]]] = {
    "direct": _direct,
    "choice": _choice,
    "correction": _correction,
    "aside": _aside,
    "verify": _verify,
}
"""Name -> questions about a pair. `direct` is the retained record itself; `choice`, `correction` and `verify`
hold the answer to forget in their prompt (never in their response), `aside` the prompt to forget."""


def from_templates(
    pairs: Sequence[Pair], forget: Sequence[Record], retain: Sequence[Record], names: Sequence[str]
) -> list[Draft]:
    """Every template's questions about every pair, pair by pair; the order of a choice alternates."""
    return [
        Draft(*wording, name, pair)
        for number, pair in enumerate(pairs)
        for name in names
        for wording in TEMPLATES[name](forget[pair.forget], retain[pair.retain], number % 2 == 1)
    ]


def from_generator(
    pairs: Sequence[Pair], forget: Sequence[Record], retain: Sequence[Record], means: Means
) -> list[Draft]:
    """A question that a model writes about each pair; its answer is always the retained record's response.

    A question that is empty, repeats the record's own or gives either answer away is drawn again, up to three
    times; then the pair has none.
    """
    found: dict[int, str] = {}
    for attempt in range(ATTEMPTS):
        left = [i for i in range(len(pairs)) if i not in found]
        texts = sample_texts(
            means.model,
            means.tokenizer,
            [_request(forget[pairs[i].forget], retain[pairs[i].retain], means) for i in left],
            ends=turn_ends(means),
            tokens=64,
            seed=means.seed * ATTEMPTS + attempt,
            precision=means.precision,
        )
        for i, text in zip(left, texts, strict=True):
            question = (text.strip().splitlines() or [""])[0].removeprefix(OPENING).strip()
            if _usable(question, forget[pairs[i].forget], retain[pairs[i].retain]):
                found[i] = question
    return [
        Draft(found[i], retain[p.retain].response, forget[p.forget].response, GENERATED, p)
        for i, p in enumerate(pairs)
        if i in found
    ]


def _request(forget: Record, kept: Record, means: Means) -> tuple[int, ...]:
    text = REQUEST.format(
        prompt=kept.prompt,
        response=kept.response,
        other_prompt=forget.prompt,
        other_response=forget.response,
    )
    return encode_prompt(f"{text}\n{OPENING}", means.tokenizer, means.template)


def _usable(question: str, forget: Record, kept: Record) -> bool:
    text = normalised(question)
    away = any(normalised(answer) in text for answer in (forget.response, kept.response))
    return bool(text) and not away and text not in (normalised(kept.prompt), normalised(forget.prompt))


def margins(drafts: Sequence[Draft], reader: Reader) -> list[float]:
    """How much likelier the right answer is than the wrong one under the same prompt, in nats per token."""
    right = [Record(draft.prompt, draft.right) for draft in drafts]
    wrong = [Record(draft.prompt, draft.wrong) for draft in drafts]
    found = reader.log_likelihoods([*right, *wrong])
    return [float(value) for value in found[: len(right)] - found[len(right) :]]


def discriminable(
    drafts: Sequence[Draft], reader: Reader, means: Means, margin: float
) -> list[tuple[Draft, float]]:
    """Drafts that fit the context and whose right answer the model prefers by a margin; the first of each.

    Args:
        drafts: Nearest first: of two that ask and answer the same, the first is kept.
        reader: The model before unlearning.
        means: The same model's, with its limit.
        margin: In nats per token, at least 0.
    """
    fitting = [
        d
        for d in drafts
        if fits(d.prompt, d.right, means)
        and fits(d.prompt, d.wrong, means)
        and normalised(d.right) != normalised(d.wrong)
    ]
    found: dict[tuple[str, str], tuple[Draft, float]] = {}
    for draft, value in zip(fitting, margins(fitting, reader) if fitting else [], strict=True):
        if value >= margin:
            found.setdefault((normalised(draft.prompt), normalised(draft.right)), (draft, value))
    return list(found.values())
