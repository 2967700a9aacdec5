"""The look at the forget records during a run: which rows, against which control, in one scored pass.

Most looks read a fixed sample. Before a run ends as forgotten all records are looked at (`Monitor.look`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded, Encoding
from expunge.errors import UsageError
from expunge.inference import Precision
from expunge.record import Check
from expunge.records import Record, Records, swap_responses
from expunge.scoring import TokenScores
from expunge.stopping import Looked, against_holdout, against_swaps, with_earlier
from expunge.synthetic_holdout import synthetic_holdout
from expunge.tables import Part, examine

SWAPS = 3

BATCH_TOKENS = 4096
"""Small, since the training's own memory stays taken."""

Row = TypeVar("Row")


@runtime_checkable
class ForgetCheck(Protocol):
    """A look at the forget records."""

    def __call__(
        self, step: int, *, remained: Sequence[int] = (), lead: float = 0.0, whole: bool = False
    ) -> Check:
        """Look at some rows, the same at every look, or at all.

        Args:
            step: Optimizer steps taken so far.
            remained: Rows to look at besides: the last look said that they are still reproduced.
            lead: `Check.lead` of the last look at all.
            whole: Whether to look at all.
        """
        ...


@dataclass(frozen=True)
class CheckSettings:
    """How rows are chosen, encoded and scored."""

    rows: int
    seed: int
    encoding: Encoding
    precision: Precision


def forget_check(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Records,
    holdout: Sequence[Encoded] | None,
    settings: CheckSettings,
    *,
    retain: Sequence[Record] = (),
    earlier: Records | None = None,
) -> ForgetCheck | None:
    """A look at forget records, a fixed sample or all; None where there is nothing to compare them with.

    Args:
        model: In training; scored in evaluation mode. With `earlier`, it is looked at once right now.
        tokenizer: Its tokenizer.
        forget: Records to forget.
        holdout: Rows never seen. None makes some (`synthetic_holdout`), and where the records hold too few
            names for that, compares with other records' responses to the same prompt.
        settings: See `CheckSettings`.
        retain: Records to keep, which lend the synthetic ones names and numbers.
        earlier: Records that earlier requests removed: a look is met only while a sample of them stays
            forgotten.
    """
    known = [*forget, *(earlier or ())], retain
    scorer = _Scorer(model, tokenizer, settings)
    look = _one_set(forget, holdout, scorer, known)
    again = _one_set(earlier, holdout, scorer, known) if earlier else None
    if look is None or again is None:
        return look
    now, then, start = look, again, again(0)

    def both(step: int, **how: Any) -> Check:
        return with_earlier(now(step, **how), then(step), start)

    return both


def _one_set(
    forget: Records,
    holdout: Sequence[Encoded] | None,
    scorer: _Scorer,
    known: tuple[Sequence[Record], Sequence[Record]],
) -> ForgetCheck | None:
    rows, seed = scorer.settings.rows, scorer.settings.seed
    chosen = sample(range(len(forget)), rows, seed)
    if holdout:
        return _BesideHoldout(forget, chosen, scorer, unseen=sample(holdout, rows, seed))
    beside = _BesideTwins(forget, chosen, scorer, known=known)
    if 2 * len(beside.usual) >= len(chosen):
        return beside
    swaps = swap_responses(forget, SWAPS, seed)
    return _BesideSwaps(forget, chosen, scorer, swaps=swaps) if any(swaps[i] for i in chosen) else None


@dataclass(frozen=True)
class _Scorer:
    """Turns records into rows, and rows into scores."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    settings: CheckSettings

    def encoded(self, records: Sequence[Record], name: str = "forget") -> list[Encoded]:
        return self.settings.encoding.rows(records, self.tokenizer, name=name)

    def scores(self, groups: Sequence[Sequence[Encoded]]) -> list[list[TokenScores]]:
        parts = {str(i): Part(rows) for i, rows in enumerate(groups)}
        precision = self.settings.precision
        tables = examine(self.model, self.tokenizer, parts, precision=precision, batch_tokens=BATCH_TOKENS)
        return [table.scores for table in tables.values()]


@dataclass(frozen=True)
class _Look(ABC):
    """A look at one set of records.

    Args:
        forget: The records.
        chosen: Numbers of those that are looked at each time.
        scorer: Scores them.
    """

    forget: Records
    chosen: Sequence[int]
    scorer: _Scorer
    kept: dict[int, Encoded] = field(default_factory=dict)

    def __call__(
        self, step: int, *, remained: Sequence[int] = (), lead: float = 0.0, whole: bool = False
    ) -> Check:
        total = len(self.forget)
        whole = whole or len(self.chosen) == total
        further = {*(range(total) if whole else remained)} - {*self.chosen}
        numbers = [*self.usual, *self.readable(sorted(further))]
        return self.judged(step, Looked(numbers, len(self.usual), total, whole, remained, lead))

    @property
    def usual(self) -> Sequence[int]:
        """Of the chosen rows those that can be compared."""
        return self.chosen

    def readable(self, numbers: Sequence[int]) -> Sequence[int]:
        """Of other rows those that can be compared."""
        return numbers

    @abstractmethod
    def judged(self, step: int, looked: Looked) -> Check:
        """Score rows and what they are compared with."""

    def rows(self, numbers: Sequence[int]) -> list[Encoded]:
        """Forget rows."""
        new = [n for n in numbers if n not in self.kept]
        self.kept.update(zip(new, self.scorer.encoded([self.forget[n] for n in new]), strict=True))
        return [self.kept[n] for n in numbers]


@dataclass(frozen=True)
class _BesideHoldout(_Look):
    """Beside rows never seen."""

    unseen: Sequence[Encoded] = ()

    def judged(self, step: int, looked: Looked) -> Check:
        true, unseen = self.scorer.scores([self.rows(looked.numbers), self.unseen])
        return against_holdout(step, true, unseen, looked=looked)


@dataclass(frozen=True)
class _BesideTwins(_Look):
    """Beside records like them about nobody."""

    known: tuple[Sequence[Record], Sequence[Record]] = ((), ())

    @cached_property
    def twins(self) -> dict[int, Encoded]:
        """Of the chosen rows that have one that fits."""
        return self._twins(self.chosen)

    @cached_property
    def further(self) -> dict[int, Encoded]:
        """Of all others: made at once, whichever are asked for, so that a resumed run has the same."""
        return self._twins(sorted({*range(len(self.forget))} - {*self.chosen}))

    @property
    def usual(self) -> Sequence[int]:
        return [*self.twins]

    def readable(self, numbers: Sequence[int]) -> Sequence[int]:
        return [n for n in numbers if n in self.further]

    def judged(self, step: int, looked: Looked) -> Check:
        compared = looked.numbers if looked.whole else looked.numbers[: looked.usual]
        invented = [self.twins[n] if n in self.twins else self.further[n] for n in compared]
        true, others = self.scorer.scores([self.rows(looked.numbers), invented])
        return against_holdout(step, true, others, control="synthetic", looked=looked)

    def _twins(self, numbers: Sequence[int]) -> dict[int, Encoded]:
        records, found = [self.forget[n] for n in numbers], dict[int, Encoded]()
        twins = synthetic_holdout(records, *self.known, self.scorer.settings.seed)
        for number, twin in zip(numbers, twins, strict=True):
            if twin is not None:
                with suppress(UsageError):  # a longer name may not fit; the record does
                    (found[number],) = self.scorer.encoded([twin], "synthetic holdout")
        return found


@dataclass(frozen=True)
class _BesideSwaps(_Look):
    """Beside other records' responses under their prompts."""

    swaps: Sequence[Sequence[str]] = ()

    def judged(self, step: int, looked: Looked) -> Check:
        asked = [(n, Record(self.forget[n].prompt, r)) for n in looked.numbers for r in self.swaps[n]]
        others = self.scorer.encoded([record for _, record in asked], "swapped forget")
        true, scored = self.scorer.scores([self.rows(looked.numbers), others])
        swapped: dict[int, list[TokenScores]] = {n: [] for n in looked.numbers}
        for (n, _), score in zip(asked, scored, strict=True):
            swapped[n].append(score)
        return against_swaps(step, true, list(swapped.values()), looked=looked)


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows at most, drawn once, in their old order."""
    if len(rows) <= count:
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), size=count, replace=False)
    return [rows[i] for i in sorted(chosen.tolist())]
