"""What a benchmark is: records, what is asked of a model about them, and what the answers mean.

A benchmark never sees a model. It names `Part`s; whoever runs it has one model after another examined and
hands back the `Tables`; the benchmark turns them into values with intervals, beside those of a reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from expunge.record import Metric
from expunge.records import Records
from expunge.tables import Part, Tables


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of a split as a page shows it.

    Attributes:
        prompt: What the model was asked.
        response: The true response.
        generation: Greedy answer; None where none was asked for.
        nll: Mean negative log-likelihood of the response per token, in nats; None where it was not scored.
        leaked: The benchmark's own notion of "gave it away"; None where it does not apply.
    """

    prompt: str
    response: str
    generation: str | None = None
    nll: float | None = None
    leaked: bool | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a benchmark makes of one model's tables.

    Attributes:
        splits: Split -> metric -> value with its 95 % interval; aggregates stand in the split "all".
        answers: Split -> answers to show.
        notes: What a reader must know, e.g. "forget quality: no reference model given".
    """

    splits: Mapping[str, Mapping[str, Metric]]
    answers: Mapping[str, Sequence[Answer]]
    notes: Sequence[str] = ()


@runtime_checkable
class Benchmark(Protocol):
    """Data and metrics under one name; a benchmark's module has a `load` that reads one from a folder."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        ...

    @property
    def sets(self) -> Mapping[str, Records]:
        """What was read, for the record of the run: source, hash, rows."""
        ...

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Mapping[str, Part]:
        """What is asked of a model.

        Args:
            tokenizer: The model's own.
            context: Positions that the model has, if it states them; rows that exceed them are refused.

        Raises:
            UsageError: A record does not fit.
        """
        ...

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        """What the answers mean; pure: no model.

        Args:
            tables: Of the model, of this benchmark's parts.
            reference: Of the reference (retain or control) model, of the same parts; None if there is none.
            seed: Of the intervals.
        """
        ...
