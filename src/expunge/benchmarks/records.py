"""The benchmark on the user's own records: is forget gone, is retain kept, beside records never seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from expunge import intervals, metrics
from expunge.benchmarks.benchmark import Answer, Measured
from expunge.collate import Encoding
from expunge.contrast import CONTRAST
from expunge.generation import Generation
from expunge.record import Metric
from expunge.records import Record, Records, swap_responses
from expunge.scoring import TokenScores
from expunge.tables import Part, Tables

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


@dataclass(frozen=True)
class UserRecords:
    """The user's own sets. A metric that cannot be measured, for want of a set or of swaps, is absent.

    Args:
        sets: Split -> records; membership of "forget" is measured against "holdout".
        encoding: How records become rows; a response that it cuts is compared as far as it goes.
        swaps: Other records' responses per record for the truth ratio; 0 leaves it out. A record with a field
            `contrast` is compared with that text alone.
        swap_seed: Which ones, where several would do.
        group_field: Metadata field that names what correlated records share; intervals resample whole groups
            where every record of a split has it.
    """

    sets: Mapping[str, Records]
    encoding: Encoding = field(default_factory=Encoding)
    swaps: int = 3
    swap_seed: int = 0
    group_field: str = "person"
    name: str = "records"

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> dict[str, Part]:
        """Every set as it is, and with swapped responses; a swapped row that exceeds the context is cut."""
        cutting = Encoding(self.encoding.template, self.encoding.max_length or context)
        parts = {}
        for name, records in self.sets.items():
            parts[name] = Part(
                self.encoding.rows(records, tokenizer, context=context, name=name), new_tokens=None
            )
            swapped = [Record(records[i].prompt, response) for i, response in self._swaps[name]]
            parts[f"{name}/swapped"] = Part(cutting.rows(swapped, tokenizer, name=name))
        return parts

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        """Metrics of every set; a reference model changes none of them."""
        outcomes = self.outcomes(tables)
        return Measured(splits=_splits(outcomes, seed), answers=self._answers(outcomes))

    def outcomes(self, tables: Tables) -> dict[str, list[Outcome]]:
        """What the model made of each record: split -> one per record, in the records' order."""
        return {name: self._outcomes(name, records, tables) for name, records in self.sets.items()}

    @cached_property
    def _swaps(self) -> dict[str, list[tuple[int, str]]]:
        """Split -> (record, response of another record), record by record."""
        found = {}
        for name, records in self.sets.items():
            others = swap_responses(records, self.swaps, self.swap_seed) if self.swaps else []
            for i, record in enumerate(records):
                if others and isinstance(wrong := record.metadata.get(CONTRAST), str) and wrong.strip():
                    others[i] = (wrong,)  # the record says itself what it must be told from
            found[name] = [(i, response) for i, own in enumerate(others) for response in own]
        return found

    def _outcomes(self, name: str, records: Records, tables: Tables) -> list[Outcome]:
        table = tables[name]
        others: list[list[float]] = [[] for _ in records]
        for (i, _), scores in zip(self._swaps[name], tables[f"{name}/swapped"].scores, strict=True):
            others[i].append(scores.nll)
        return [
            _outcome(
                scores,
                others[i],
                generation,
                table.cut.get(i, record.response),
                _group(record, self.group_field),
            )
            for i, (record, scores, generation) in enumerate(
                zip(records, table.scores, table.generations, strict=True)
            )
        ]

    def _answers(self, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, list[Answer]]:
        return {
            name: [
                Answer(record.prompt, record.response, outcome.generation, outcome.nll, outcome.leaked)
                for record, outcome in zip(self.sets[name], found, strict=True)
            ]
            for name, found in outcomes.items()
        }


def _group(record: Record, field: str) -> str | None:
    value = record.metadata.get(field)
    return None if value is None else str(value)


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
