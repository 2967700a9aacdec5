"""Many ways to ask for each record, each of a named kind; the best answer counts, and so does their spread.

What the input attacks share. Knows prompts and answers; knows nothing of how the ways to ask are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from expunge import intervals
from expunge.attacks.answers import ask_rows, best, curve_of, judge, stopped, tokens_in
from expunge.attacks.attack import Cost, Findings, Probes, Recovery, Setting, Target
from expunge.collate import Encoded, Encoding, encode_prompt
from expunge.generation import MARGIN
from expunge.inference import model_context
from expunge.record import Metric
from expunge.records import Record

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
    recovery: Recovery


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


def ask(target: Target, probes: Probes, setting: Setting, questions: Sequence[Sequence[Question]]) -> Replies:
    """Put the questions, the first of every record before the second of any; greedy answers.

    Args:
        target: Who is asked.
        probes: Their forget records give the responses.
        setting: Precision and clock.
        questions: One list per forget record; a question that leaves no room for an answer is not put.
    """
    known = Encoding(probes.encoding.template).rows(probes.forget, target.tokenizer) if probes.forget else []
    order = [(n, i) for i, own in enumerate(questions) for n in range(len(own))]
    context = model_context(target.model)
    put: list[tuple[Question, int]] = []
    rows: list[Encoded] = []
    for n, i in sorted(order):
        ids = prompt_ids(questions[i][n].turns, target.tokenizer, probes.encoding)
        if ids and (context is None or len(ids) + len(known[i].labels) <= context):
            put.append((questions[i][n], i))
            rows.append(Encoded((*ids, *known[i].labels), len(ids)))
    texts = ask_rows(target, rows, [len(row.labels) + MARGIN for row in rows], setting)
    replies: list[list[Reply]] = [[] for _ in probes.forget]
    for (question, i), text in zip(put, texts, strict=True):
        if text is not None:
            replies[i].append(Reply(question, judge(probes.forget[i], question.text, text)))
    done = sum(map(len, replies))
    notes = [stopped(setting, done, len(put), "prompts")] if done < len(put) else []
    if len(put) < len(order):
        notes.append(f"{len(order) - len(put)} of {len(order)} prompts do not fit the context: not tried.")
    return Replies(replies, notes, complete=done == len(put))


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


def findings(replies: Replies, axis: str, values: Mapping[str, Metric] | None = None) -> Findings:
    """The best reply per record, and how many questions it took.

    Args:
        replies: What was said.
        axis: What the curve counts: questions.
        values: Further numbers.
    """
    tried = [[one.recovery for one in own] for own in replies.of]
    return Findings(
        recoveries=[best(own) for own in tried],
        curve=curve_of(tried) if max(map(len, tried), default=0) > 1 else {},
        axis=axis,
        values=values or {},
        notes=replies.notes,
        complete=replies.complete,
    )


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
            kinds[one.question.kind][i] = max(before, float(one.recovery.recovered))
    found = {f"recovered: {kind}": shared(of, records, seed) for kind, of in kinds.items()}
    several = {i: [one.recovery for one in own] for i, own in enumerate(replies.of) if len(own) > 1}
    if several:
        scores = {i: [one.score for one in own] for i, own in several.items()}
        found["spread"] = shared({i: max(s) - min(s) for i, s in scores.items()}, records, seed)
        split = {i: float(len({one.recovered for one in own}) > 1) for i, own in several.items()}
        found["disagreement"] = shared(split, records, seed)
    return found


def shared(values: Mapping[int, float], records: Sequence[Record], seed: int) -> Metric:
    """Mean over some records, by their place, of a quantity in [0, 1]."""
    chosen = groups([records[i] for i in values])
    return intervals.share([min(1.0, max(0.0, v)) for v in values.values()], seed=seed, groups=chosen)


def groups(records: Sequence[Record]) -> list[str] | None:
    """What correlated records share, where all of them say so: their `person`."""
    named = [str(record.metadata["person"]) for record in records if "person" in record.metadata]
    return named if records and len(named) == len(records) else None


def asking_cost(probes: Probes, questions: Sequence[Sequence[Question]]) -> Cost:
    """What `ask` takes for these questions, at most."""
    read = sum(tokens_in(question.text) for own in questions for question in own)
    written = sum(
        len(own) * (tokens_in(record.response) + MARGIN)
        for record, own in zip(probes.forget, questions, strict=True)
    )
    return Cost(forward_tokens=read, generated_tokens=written)
