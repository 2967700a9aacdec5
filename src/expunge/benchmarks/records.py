"""The benchmark on the user's own records: is forget gone, is retain kept, beside records never seen.

One scored pass and one generation pass per model; every metric is a pure function of what they gave.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge import intervals, metrics
from expunge.collate import Encoded, Template, encode, end_token
from expunge.record import Evaluation, Metric, Sample, Stage
from expunge.records import Record, Records, swap_responses
from expunge.scoring import Generation, Precision, Progress, TokenScores, context_length, generate, score

Metrics = dict[str, Metric]

METRICS: Mapping[str, str] = {
    "leak": "Share of records whose response greedy decoding gives, up to case, quotes and white space.",
    "reproduced": "Share of records of which every response token is the likeliest one (teacher forcing).",
    "rouge_l_recall": "Share of the response's words that the generation holds in order (ROUGE-L, stemmed).",
    "probability": "Probability of the response, per token: exp(-NLL).",
    "nll": "Negative log-likelihood of the response in nats per token, averaged over records.",
    "truth_ratio": "Other records' responses against the true one: 0 knows the truth, 0.5 indifferent.",
    "membership_loss_auc": "Chance that a forget record looks more familiar than a holdout one, by its loss.",
    "membership_min_k_auc": "The same by its least likely fifth of tokens (Min-K% Prob).",
}
"""Metric -> one line; the last two under forget only."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one model made of one record.

    Attributes:
        generation: Greedy answer to the prompt.
        nll: Mean negative log-likelihood of the response per token, in nats.
        probability: exp(-nll).
        reproduced: Every response token, the end included, is the likeliest after the true ones before it.
        leaked: The generation is the response (`metrics.exact_match`).
        rouge_l_recall: NaN where the response holds no word that ROUGE knows.
        min_k: Mean log-probability of the 20 % least likely tokens.
        truth_ratio: NaN where no other record's response could be swapped in.
        group: What the record belongs to, if its metadata say so.
    """

    generation: str
    nll: float
    probability: float
    reproduced: bool
    leaked: bool
    rouge_l_recall: float
    min_k: float
    truth_ratio: float
    group: str | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model's metrics, and the outcomes behind them: split -> one per record, in the records' order."""

    evaluation: Evaluation
    outcomes: Mapping[str, list[Outcome]]


@dataclass(frozen=True, slots=True)
class _Rows:
    """All records of all splits, encoded as they are (`own`) and with responses of others (`swapped`)."""

    own: list[Encoded]
    swapped: list[Encoded]
    owners: list[int]
    references: list[str]
    groups: list[str | None]


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Records],
    *,
    template: Template = "auto",
    max_length: int | None = None,
    precision: Precision = "fp32",
    seed: int = 0,
    swaps: int = 3,
    batch_tokens: int = 4096,
    group_field: str = "person",
    progress: Progress | None = None,
) -> Evaluated:
    """Measure one model on the given splits.

    What each metric is stands in `METRICS`. Membership of forget is measured against holdout. A metric that
    cannot be measured, for want of a split or of responses to swap, is absent.

    Args:
        model: A causal language model, wrapped or not.
        tokenizer: Its tokenizer.
        sets: Split -> records; a split that is missing is missing from the result.
        template: As in `collate.encode`.
        max_length: As in `collate.encode`; a response that it cuts is compared as far as it goes.
        precision: Of all forward passes.
        seed: Of the swaps and of the intervals.
        swaps: Other records' responses per record for the truth ratio; 0 leaves it out.
        batch_tokens: Tokens per batch, padding included.
        group_field: Metadata field that names what correlated records share; intervals resample whole groups
            where every record of a split has it.
        progress: Called with the number of records finished so far; both passes together make up the whole.

    Raises:
        UsageError: From `collate.encode`, about a record.
    """
    started = time.perf_counter()
    encoder = _Encoder(tokenizer, template, max_length, context_length(model))
    rows = _rows(sets, encoder, swaps, seed, group_field)
    count, both = _Count(rows, progress), [*rows.own, *rows.swapped]
    pad = tokenizer.pad_token_id or 0
    scores = score(model, both, pad_id=pad, precision=precision, batch_tokens=batch_tokens, progress=count)
    generations = generate(
        model,
        rows.own,
        tokenizer=tokenizer,
        precision=precision,
        batch_tokens=batch_tokens,
        scores=scores[: len(rows.own)],
        progress=count,
    )
    outcomes = _by_split(sets, _outcomes(rows, scores, generations))
    evaluation = Evaluation(
        splits=_splits(outcomes, seed),
        seconds=time.perf_counter() - started,
        scored_tokens=sum(len(row.input_ids) for row in both),
        generated_tokens=sum(len(generation.tokens) for generation in generations),
    )
    return Evaluated(evaluation=evaluation, outcomes=outcomes)


def samples(
    evaluated: Mapping[Stage, Evaluated], sets: Mapping[str, Records], limit: int = 24
) -> list[Sample]:
    """Records to show, with what each model said: up to `limit` of forget, half as many of other splits.

    Records that the unlearned model still leaks (of forget) or no longer gives (elsewhere) come first, so
    that a table never hides a failure; the rest is spread evenly over the split. Records keep their order.

    Args:
        evaluated: Stage -> what was measured there, on these sets.
        sets: Split -> records.
        limit: At least 1.
    """
    shown = []
    for split, records in sets.items():
        outcomes = {stage: e.outcomes[split] for stage, e in evaluated.items() if split in e.outcomes}
        most = limit if split == "forget" else max(1, limit // 2)
        rows = _choose(len(records), _failures(split, outcomes), most)
        shown += [_sample(split, records[row], row, outcomes) for row in rows]
    return shown


class _Count:
    """Turns batches of rows, of both passes together, into records finished."""

    def __init__(self, rows: _Rows, progress: Progress | None) -> None:
        self.done, self.rows, self.records = 0, 2 * len(rows.own) + len(rows.swapped), len(rows.own)
        self.progress = progress

    def __call__(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done * self.records // self.rows)


@dataclass(frozen=True, slots=True)
class _Encoder:
    """How records become rows and rows text."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int | None
    context: int | None

    def own(self, records: Records, name: str) -> list[Encoded]:
        """A record that exceeds the model's context is refused."""
        return encode(
            records,
            self.tokenizer,
            template=self.template,
            max_length=self.max_length,
            context=self.context,
            name=name,
        )

    def swapped(self, records: Sequence[Record], name: str) -> list[Encoded]:
        """A response that exceeds it under another record's prompt is cut."""
        longest = self.max_length or self.context
        return encode(records, self.tokenizer, template=self.template, max_length=longest, name=name)

    def reference(self, record: Record, row: Encoded) -> str:
        """The response, as far as it survived truncation."""
        if row.input_ids[-1] == end_token(self.tokenizer, self.template):
            return record.response
        return str(self.tokenizer.decode(list(row.labels), skip_special_tokens=True))


def _rows(sets: Mapping[str, Records], encoder: _Encoder, swaps: int, seed: int, group_field: str) -> _Rows:
    rows = _Rows([], [], [], [], [])
    for name, records in sets.items():
        others = swap_responses(records, swaps, seed) if swaps else [()] * len(records)
        pairs = [(i, response) for i, own in enumerate(others) for response in own]
        swapped = [Record(prompt=records[i].prompt, response=response) for i, response in pairs]
        own = encoder.own(records, name)
        rows.owners.extend(len(rows.own) + i for i, _ in pairs)
        rows.own.extend(own)
        rows.swapped.extend(encoder.swapped(swapped, name))
        rows.references.extend(map(encoder.reference, records, own))
        rows.groups.extend(_group(record, group_field) for record in records)
    return rows


def _group(record: Record, field: str) -> str | None:
    value = record.metadata.get(field)
    return None if value is None else str(value)


def _outcomes(rows: _Rows, scores: Sequence[TokenScores], generations: Sequence[Generation]) -> list[Outcome]:
    own, swapped = scores[: len(rows.own)], scores[len(rows.own) :]
    others: list[list[float]] = [[] for _ in own]
    for owner, other in zip(rows.owners, swapped, strict=True):
        others[owner].append(other.nll)
    columns = zip(own, others, generations, rows.references, rows.groups, strict=True)
    return [_outcome(*column) for column in columns]


def _outcome(
    scores: TokenScores, others: Sequence[float], generation: Generation, reference: str, group: str | None
) -> Outcome:
    return Outcome(
        generation=generation.text,
        nll=scores.nll,
        probability=scores.probability,
        reproduced=scores.reproduced,
        leaked=metrics.exact_match(generation.text, reference),
        rouge_l_recall=metrics.rouge_l_recall(generation.text, reference),
        min_k=metrics.min_k(scores.log_probs),
        truth_ratio=metrics.truth_ratio(scores.nll, others) if others else math.nan,
        group=group,
    )


def _by_split(sets: Mapping[str, Records], outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Cut the outcomes of all splits, in a row, into those of each."""
    rest = iter(outcomes)
    return {name: [next(rest) for _ in records] for name, records in sets.items()}


def _splits(outcomes: Mapping[str, Sequence[Outcome]], seed: int) -> dict[str, Metrics]:
    splits = {name: _summary(rows, seed) for name, rows in outcomes.items()}
    if "forget" in outcomes and "holdout" in outcomes:
        splits["forget"] |= _membership(outcomes["forget"], outcomes["holdout"], seed)
    return splits


def _groups(outcomes: Sequence[Outcome]) -> list[str] | None:
    groups = [outcome.group for outcome in outcomes if outcome.group is not None]
    return groups if len(groups) == len(outcomes) else None


def _summary(outcomes: Sequence[Outcome], seed: int) -> Metrics:
    groups = _groups(outcomes)
    summary = {
        name: intervals.share(
            [float(getattr(outcome, column)) for outcome in outcomes], seed=seed, groups=groups
        )
        for name, column in (("leak", "leaked"), ("reproduced", "reproduced"), ("probability", "probability"))
    }
    summary["nll"] = intervals.mean([outcome.nll for outcome in outcomes], seed=seed, groups=groups)
    for name in ("rouge_l_recall", "truth_ratio"):
        measured = [outcome for outcome in outcomes if not math.isnan(getattr(outcome, name))]
        if measured:
            values = [getattr(outcome, name) for outcome in measured]
            summary[name] = intervals.share(values, seed=seed, groups=_groups(measured))
    return summary


def _membership(forget: Sequence[Outcome], holdout: Sequence[Outcome], seed: int) -> Metrics:
    scores: dict[str, Callable[[Outcome], float]] = {
        "membership_loss_auc": lambda outcome: -outcome.nll,
        "membership_min_k_auc": lambda outcome: outcome.min_k,
    }
    return {
        name: intervals.membership_auc(
            [of(outcome) for outcome in forget],
            [of(outcome) for outcome in holdout],
            seed=seed,
            member_groups=_groups(forget),
            other_groups=_groups(holdout),
        )
        for name, of in scores.items()
    }


def _failures(split: str, outcomes: Mapping[Stage, Sequence[Outcome]]) -> list[int]:
    """Rows of forget that the unlearned model still gives, rows of another split that it lost."""
    after = outcomes.get("after")
    if after is None:
        return []
    if split == "forget":
        return [i for i, outcome in enumerate(after) if outcome.leaked]
    before = outcomes.get("before", ())
    return [
        i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old.leaked and not new.leaked
    ]


def _choose(rows: int, failed: Sequence[int], limit: int) -> list[int]:
    chosen = list(failed[:limit])
    rest = [i for i in range(rows) if i not in set(failed)]
    spread = np.linspace(0, len(rest) - 1, min(limit - len(chosen), len(rest))).round().astype(int)
    return sorted([*chosen, *(rest[i] for i in spread)])


def _sample(split: str, record: Record, row: int, outcomes: Mapping[Stage, Sequence[Outcome]]) -> Sample:
    return Sample(
        split=split,
        prompt=record.prompt,
        response=record.response,
        generations={stage: rows[row].generation for stage, rows in outcomes.items()},
        nll={stage: rows[row].nll for stage, rows in outcomes.items()},
        leaked={stage: rows[row].leaked for stage, rows in outcomes.items()},
    )
