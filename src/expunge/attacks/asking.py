"""Many ways to ask for each record, in batches until time runs out; the best answer counts.

What the input attacks share. Knows prompts and answers; knows nothing of how the ways to ask are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from expunge import intervals
from expunge.attacks.attack import Cost, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.verdicts import closeness, leaked
from expunge.collate import Encoded, Encoding, encode_prompt
from expunge.generation import MARGIN, generate
from expunge.inference import model_context
from expunge.record import Metric
from expunge.records import Record

ROWS = 64
"""Questions between two looks at the clock."""

CHARACTERS = 4
"""Of a token, on average, where no tokenizer is at hand (an estimate for English)."""

Turns = tuple[str, ...]
"""Texts of user and model in turn, the user first and last."""


@dataclass(frozen=True, slots=True)
class Question:
    """One way to ask for one record's response.

    Attributes:
        kind: What sort of way it is, as a page names it.
        turns: What is said; a single text stands where the training prompt stood.
    """

    kind: str
    turns: Turns

    @property
    def text(self) -> str:
        """For a reader."""
        return "\n".join(self.turns)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to a question, and how close that is to the response."""

    question: Question
    output: str
    score: float
    recovered: bool

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts the best last."""
        return self.recovered, self.score


@dataclass(frozen=True, slots=True)
class Replies:
    """All replies of one model.

    Attributes:
        of: One list per record, in the order in which the questions were put.
        notes: What a reader must know of them.
        complete: Whether all that fits the context was asked.
    """

    of: Sequence[Sequence[Reply]]
    notes: Sequence[str] = ()
    complete: bool = True


def ask(
    target: Target, probes: Probes, setting: Setting, questions: Sequence[Sequence[Question]]
) -> Replies:
    """Put the questions, the first of every record before the second of any; greedy answers.

    Args:
        target: Who is asked.
        probes: Their forget records give the responses.
        setting: Its clock is looked at after every batch.
        questions: One list per forget record; a question that leaves no room for an answer is not put.
    """
    replies: list[list[Reply]] = [[] for _ in probes.forget]
    rounds = max(map(len, questions), default=0)
    order = [(i, n) for n in range(rounds) for i, own in enumerate(questions) if n < len(own)]
    rows = {key: _row(questions[key[0]][key[1]], probes, key[0], target) for key in order}
    put = [key for key in order if (row := rows[key]) is not None and _fits(row, target)]
    done = 0
    for start in range(0, len(put), ROWS):
        if setting.clock.over:
            break
        chunk = put[start : start + ROWS]
        outputs = answers(target, [row for key in chunk if (row := rows[key]) is not None], setting)
        for (i, n), output in zip(chunk, outputs, strict=True):
            replies[i].append(reply(questions[i][n], output, probes.forget[i].response))
        done += len(chunk)
    return Replies(replies, _notes(len(order), len(put), done, setting), complete=done == len(put))


def answers(target: Target, rows: Sequence[Encoded], setting: Setting) -> list[str]:
    """Greedy answers as text; each may be a little longer than its row's own response."""
    found = generate(target.model, rows, tokenizer=target.tokenizer, precision=setting.precision)
    return [generation.text for generation in found]


def reply(question: Question, output: str, response: str) -> Reply:
    """Judge one answer."""
    recovered = leaked(output, response)
    return Reply(question, output, 1.0 if recovered else closeness(output, response), recovered)


def prompt_ids(turns: Turns, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> tuple[int, ...]:
    """Ids that an answer would follow.

    Several turns go into the chat template as such; without one they stand below each other, every answer
    behind its question as in training.
    """
    if len(turns) == 1:
        return encode_prompt(turns[0], tokenizer, encoding.template)
    if encoding.template == "none" or not tokenizer.chat_template:
        pairs = [f"{said} {answer}" for said, answer in zip(turns[::2], turns[1::2], strict=False)]
        return encode_prompt("\n".join([*pairs, turns[-1]]), tokenizer, encoding.template)
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def follow(ids: Sequence[int], record: Record, target: Target, encoding: Encoding) -> Encoded:
    """A row of any beginning and the record's own response as the template would end it."""
    known = Encoding(encoding.template).rows([record], target.tokenizer)[0]
    return Encoded((*ids, *known.labels), len(ids))


def best(replies: Replies, budget: int, axis: str, values: Mapping[str, Metric] | None = None) -> Findings:
    """The best reply per record, and how many questions it took.

    Args:
        replies: What was said.
        budget: Questions per record at most: the last point of the curve.
        axis: What the curve counts.
        values: Further numbers.
    """
    first = [_first(own) for own in replies.of]
    return Findings(
        recoveries=[recovery(own) for own in replies.of],
        curve={float(n): [at <= n for at in first] for n in steps(budget)},
        axis=axis,
        values=values or {},
        notes=replies.notes,
        complete=replies.complete,
    )


def recovery(replies: Sequence[Reply]) -> Recovery:
    """The best of some replies; the first of those that are equally good."""
    if not replies:
        return Recovery(0.0, False, tries=0)
    top = max(replies, key=lambda one: one.rank)
    return Recovery(top.score, top.recovered, top.question.text, top.output, len(replies))


def steps(budget: int) -> list[int]:
    """1, 2, 4, ... and the budget itself."""
    return sorted({*(2**k for k in range(budget.bit_length())), budget})


def spread(replies: Replies, records: Sequence[Record], seed: int) -> dict[str, Metric]:
    """How far forgetting hangs on the wording, over records that were asked in several ways.

    Returns:
        "recovered: KIND", the share of records that a kind recovers; "spread", the mean over records of the
        largest less the smallest score; "disagreement", the share of records on which the kinds disagree.
        Empty where nothing was asked.
    """
    kinds: dict[str, dict[int, float]] = {}
    for i, own in enumerate(replies.of):
        for one in own:
            before = kinds.setdefault(one.question.kind, {}).get(i, 0.0)
            kinds[one.question.kind][i] = max(before, float(one.recovered))
    found = {f"recovered: {kind}": _share(of, records, seed) for kind, of in kinds.items()}
    several = {i: own for i, own in enumerate(replies.of) if len(own) > 1}
    if several:
        scores = {i: [one.score for one in own] for i, own in several.items()}
        found["spread"] = _share({i: max(s) - min(s) for i, s in scores.items()}, records, seed)
        split = {i: float(len({one.recovered for one in own}) > 1) for i, own in several.items()}
        found["disagreement"] = _share(split, records, seed)
    return found


def groups(records: Sequence[Record]) -> list[str] | None:
    """What correlated records share, where all of them say so: their `person`."""
    named = [str(record.metadata["person"]) for record in records if "person" in record.metadata]
    return named if records and len(named) == len(records) else None


def tokens(text: str) -> int:
    """An estimate without a tokenizer."""
    return max(1, round(len(text) / CHARACTERS))


def asking_cost(probes: Probes, questions: int, overhead: int = 0) -> Cost:
    """Of so many questions per record, each so many tokens longer than the record's prompt."""
    prompt = sum(tokens(record.prompt) + overhead for record in probes.forget)
    response = sum(tokens(record.response) + MARGIN for record in probes.forget)
    return Cost(forward_tokens=questions * prompt, generated_tokens=questions * response)


def _share(values: Mapping[int, float], records: Sequence[Record], seed: int) -> Metric:
    chosen = [records[i] for i in values]
    return intervals.share(np.clip(list(values.values()), 0, 1).tolist(), seed=seed, groups=groups(chosen))


def _row(question: Question, probes: Probes, index: int, target: Target) -> Encoded | None:
    ids = prompt_ids(question.turns, target.tokenizer, probes.encoding)
    return follow(ids, probes.forget[index], target, probes.encoding) if ids else None


def _fits(row: Encoded, target: Target) -> bool:
    context = model_context(target.model)
    return context is None or len(row.input_ids) <= context


def _first(replies: Sequence[Reply]) -> float:
    found = (n for n, one in enumerate(replies, 1) if one.recovered)
    return next(found, float("inf"))


def _notes(wanted: int, fitting: int, done: int, setting: Setting) -> list[str]:
    notes = []
    if fitting < wanted:
        notes.append(f"{wanted - fitting} of {wanted} prompts exceed the model's context and were not tried.")
    if done < fitting:
        notes.append(f"Stopped after {setting.clock.seconds:g} s: {done} of {fitting} prompts were tried.")
    return notes
