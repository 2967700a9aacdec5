"""What attacks that ask share: many prompts in one generation pass, and how far an answer is the response.

Knows records, rows and the generation pass; knows no particular attack.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from expunge.attacks.attack import Cost, Findings, Probes, Recovery, Setting, Target
from expunge.collate import Encoded, Encoding, encode
from expunge.generation import MARGIN, generate
from expunge.metrics import normalise, rouge_l_recall
from expunge.records import Record

UNREACHED = Recovery(0.0, False, tries=0)
"""Of a record that was not tried, because time ran out."""

_CHARACTERS_PER_TOKEN = 4
_BATCH_TOKENS = (8192, 32_768)
"""Prompt and new tokens per batch (on a CPU, elsewhere); also what is asked between two looks at a clock."""

# A letter or digit of a script that puts spaces between words.
_SPACED = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt that is meant to bring one record back.

    Attributes:
        record: What is wanted.
        prompt: What is asked; goes into the chat template where the encoding has one.
        given: How many of the response's first tokens are put into the model's mouth.
        new_tokens: The answer may have so many; None: 16 more than the rest of the response.
    """

    record: Record
    prompt: str
    given: int = 0
    new_tokens: int | None = None


# --- asking


def ask(
    target: Target, questions: Sequence[Question], encoding: Encoding, setting: Setting
) -> list[Recovery | None]:
    """Greedy answers to all questions, judged, in order; None where the time did not reach.

    The first questions are asked first. A question whose response is given whole has no rest to recover:
    it counts as tried, without success. Rows are never cut: a prompt that fills the model's context gets an
    empty answer.

    Raises:
        UsageError: A prompt gives no token.
    """
    if not questions:
        return []
    asked = [Record(question.prompt, question.record.response) for question in questions]
    whole = encode(asked, target.tokenizer, template=encoding.template, name="prompts of an attack")
    rows = [_moved(row, question.given) for row, question in zip(whole, questions, strict=True)]
    budgets = [
        question.new_tokens or len(row.labels) + MARGIN for row, question in zip(rows, questions, strict=True)
    ]
    texts = ask_rows(target, rows, budgets, setting)
    return [
        None if text is None else _judged(question, before, row, text, target.tokenizer)
        for question, before, row, text in zip(questions, whole, rows, texts, strict=True)
    ]


def ask_rows(
    target: Target, rows: Sequence[Encoded], budgets: Sequence[int], setting: Setting
) -> list[str | None]:
    """Greedy answers to rows that are encoded already (dialogues, say); None: not reached in time.

    Args:
        target: Who is asked.
        rows: Their labels are not shown to the model, and may be empty.
        budgets: New tokens per row, at least 1.
        setting: Precision and clock.
    """
    texts: list[str | None] = [None] * len(rows)
    on_cpu = next(target.model.parameters()).device.type == "cpu"
    size = _BATCH_TOKENS[0 if on_cpu else 1]
    for start, stop in _portions(rows, budgets, size, whole=math.isinf(setting.clock.seconds)):
        if setting.clock.over:
            break
        answers = generate(
            target.model,
            rows[start:stop],
            tokenizer=target.tokenizer,
            precision=setting.precision,
            budgets=budgets[start:stop],
            batch_tokens=size,
        )
        texts[start:stop] = [answer.text for answer in answers]
    return texts


def try_prompts(
    target: Target,
    probes: Probes,
    setting: Setting,
    prompts: Sequence[Sequence[str]],
    *,
    axis: str = "prompts per record",
) -> Findings:
    """Ask every prompt about its record, and keep the best answer of each record.

    First prompts of all records come first, so that an early end leaves no record untried.

    Args:
        target: Who is asked.
        probes: The records.
        setting: Precision and clock.
        prompts: Per record, in the order in which they are tried; may be of different number, or none.
        axis: Of the curve, which counts prompts.

    Raises:
        ValueError: `prompts` is of another length than the records.
    """
    if len(prompts) != len(probes.forget):
        raise ValueError(
            f"`prompts` must hold one list per record ({len(probes.forget)}); got {len(prompts)}."
        )
    order = [(k, i) for i, texts in enumerate(prompts) for k in range(len(texts))]
    order.sort()
    questions = [Question(probes.forget[i], prompts[i][k]) for k, i in order]
    tried: list[list[Recovery]] = [[] for _ in prompts]
    for (_, i), recovery in zip(order, ask(target, questions, probes.encoding, setting), strict=True):
        if recovery is not None:
            tried[i].append(recovery)
    complete = sum(map(len, tried)) == len(order)
    return Findings(
        [best(found) for found in tried],
        curve=curve_of(tried) if max(map(len, prompts), default=0) > 1 else {},
        axis=axis,
        notes=() if complete else (stopped(setting, sum(map(len, tried)), len(order), "prompts"),),
        complete=complete,
    )


# --- judging


def leaks(answer: str, response: str) -> bool:
    """Whether the answer is the response or says it somewhere, in its own words and as a whole.

    Both are compared after `metrics.normalise`; a response does not count inside a longer word or number.
    """
    return says(normalise(answer), normalise(response))


def says(said: str, truth: str) -> bool:
    """`leaks` for texts that are normalised already."""
    if said == truth:
        return True
    start = said.find(truth)
    while start >= 0:
        stop = start + len(truth)
        if not (_joined(said, start) or _joined(said, stop)):
            return True
        start = said.find(truth, start + 1)
    return False


def judge(record: Record, asked: str, answer: str, *, rest: str | None = None) -> Recovery:
    """How far an answer brings a record back: ROUGE-L recall of the response, and whether it leaks.

    An input that says the response itself recovers nothing, unless the record's own prompt says it too.
    Responses in scripts that ROUGE has no words for score 1 where they leak, else 0.

    Args:
        record: What is wanted.
        asked: The input, as a reader can repeat it.
        answer: What the model said.
        rest: The part of the response that was not given to the model; None: all of it.
    """
    wanted = record.response if rest is None else rest
    if leaks(asked, wanted) and not leaks(record.prompt, wanted):
        return Recovery(0.0, False, asked, answer)
    leaked = leaks(answer, wanted)
    recall = rouge_l_recall(answer, wanted)
    score = float(leaked) if leaked or math.isnan(recall) else recall
    return Recovery(score, leaked, asked, answer)


def best(recoveries: Sequence[Recovery]) -> Recovery:
    """The one that came furthest, the first of equals, with the tries of all; `UNREACHED` of none."""
    if not recoveries:
        return UNREACHED
    furthest = max(recoveries, key=lambda found: (found.recovered, found.score))
    return dataclasses.replace(furthest, tries=sum(found.tries for found in recoveries))


def curve_of(tried: Sequence[Sequence[Recovery]]) -> dict[float, list[bool]]:
    """Tries -> per record whether one of its first so many recovered it."""
    longest = max(map(len, tried), default=0)
    return {
        float(k): [any(found.recovered for found in one[:k]) for one in tried] for k in range(1, longest + 1)
    }


def stopped(setting: Setting, done: int, of: int, what: str) -> str:
    """The note of an attack that ran out of time."""
    return f"Stopped after {setting.clock.seconds:g} s: {done} of {of} {what} were tried."


# --- what it costs


def tokens_in(text: str) -> int:
    """About how many tokens a text has, before any tokenizer is at hand."""
    return 1 + len(text) // _CHARACTERS_PER_TOKEN


def asking_cost(probes: Probes, prompts: Sequence[Sequence[str]]) -> Cost:
    """What `try_prompts` takes for these prompts, at most."""
    read = sum(tokens_in(prompt) for texts in prompts for prompt in texts)
    written = sum(
        len(texts) * (tokens_in(record.response) + MARGIN)
        for record, texts in zip(probes.forget, prompts, strict=True)
    )
    return Cost(forward_tokens=read, generated_tokens=written)


# --- within


def _moved(row: Encoded, given: int) -> Encoded:
    """The row with so many response tokens counted to its prompt; the token that ends the turn never is."""
    return Encoded(row.input_ids, row.prompt_length + min(given, len(row.labels) - 1))


def _judged(
    question: Question, whole: Encoded, row: Encoded, text: str, tokenizer: PreTrainedTokenizerBase
) -> Recovery:
    record = question.record
    if row.prompt_length == whole.prompt_length:
        return judge(record, question.prompt, text)
    start, stop = whole.prompt_length, row.prompt_length
    given = str(tokenizer.decode(list(row.input_ids[start:stop]), skip_special_tokens=True))
    rest = str(tokenizer.decode(list(row.labels), skip_special_tokens=True)).strip()
    asked = f"{question.prompt} ▸ {given.strip()}"
    return judge(record, asked, text, rest=rest) if rest else Recovery(0.0, False, asked, text)


def _joined(text: str, at: int) -> bool:
    """Whether a word goes on across a place in a text."""
    return 0 < at < len(text) and bool(_SPACED.match(text[at - 1]) and _SPACED.match(text[at]))


def _portions(
    rows: Sequence[Encoded], budgets: Sequence[int], size: int, *, whole: bool
) -> Iterator[tuple[int, int]]:
    """Where consecutive rows begin and end that fit into one batch; all of them at once if `whole`."""
    if whole:
        yield 0, len(rows)
        return
    start, tokens = 0, 0
    for i, (row, budget) in enumerate(zip(rows, budgets, strict=True)):
        length = row.prompt_length + budget
        if i > start and tokens + length > size:
            yield start, i
            start, tokens = i, 0
        tokens += length
    if start < len(rows):
        yield start, len(rows)
