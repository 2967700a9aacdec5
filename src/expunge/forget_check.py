"""The look at the forget records during a run: which rows, against which control, in one scored pass.

Most looks read a fixed sample. Before a run ends as forgotten, all records that can be compared are looked at
(`looks`).
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
        self, step: int, *, remained: Sequence[int] = (), last: Check | None = None, whole: bool = False
    ) -> Check:
        """Look at some rows, the same at every look, or at all.

        Args:
            step: Optimizer steps taken so far.
            remained: Rows to look at besides: the look before said that they are still reproduced.
            last: The last look at all, by which a look at some is corrected.
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
    if 2 * len(beside.comparable(chosen)) >= len(chosen):
        return beside
    swaps = swap_responses(forget, SWAPS, seed)
    return _BesideSwaps(forget, chosen, scorer, swaps=swaps) if any(swaps[i] for i in chosen) else None


@dataclass(frozen=True)
class _Scorer:
    """Turns records into rows, each once, and rows into scores."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    settings: CheckSettings
    known: dict[tuple[str, str], Encoded] = field(default_factory=dict)

    def rows(self, records: Sequence[Record], name: str = "forget") -> list[Encoded]:
        keys = [(record.prompt, record.response) for record in records]
        new = {key: record for key, record in zip(keys, records, strict=True) if key not in self.known}
        made = self.settings.encoding.rows([*new.values()], self.tokenizer, name=name)
        self.known.update(zip(new, made, strict=True))
        return [self.known[key] for key in keys]

    def scores(self, *groups: Sequence[Encoded]) -> list[list[TokenScores]]:
        parts = {str(i): Part(rows) for i, rows in enumerate(groups)}
        precision = self.settings.precision
        tables = examine(self.model, self.tokenizer, parts, precision=precision, batch_tokens=BATCH_TOKENS)
        return [table.scores for table in tables.values()]


@dataclass(frozen=True)
class _Look(ABC):
    """A look at one set of records.

    Args:
        forget: The records.
        chosen: Numbers of those that are looked at each time, where they can be compared.
        scorer: Scores them.
    """

    forget: Records
    chosen: Sequence[int]
    scorer: _Scorer

    def __call__(
        self, step: int, *, remained: Sequence[int] = (), last: Check | None = None, whole: bool = False
    ) -> Check:
        total = len(self.forget)
        whole = whole or len(self.chosen) == total
        usual = self.comparable(self.chosen)
        besides = sorted({*(range(total) if whole else remained)} - {*self.chosen})
        numbers = [*usual, *self.comparable(besides)]
        return self.judged(step, Looked(numbers, len(usual), total, whole, remained, last))

    @abstractmethod
    def comparable(self, numbers: Sequence[int]) -> Sequence[int]:
        """Those of the records that there is something to compare with."""

    @abstractmethod
    def judged(self, step: int, looked: Looked) -> Check:
        """Score rows and what they are compared with."""

    def rows(self, numbers: Sequence[int]) -> list[Encoded]:
        """Forget rows."""
        return self.scorer.rows([self.forget[n] for n in numbers])


@dataclass(frozen=True)
class _BesideHoldout(_Look):
    """Beside rows never seen."""

    unseen: Sequence[Encoded]

    def comparable(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers

    def judged(self, step: int, looked: Looked) -> Check:
        true, unseen = self.scorer.scores(self.rows(looked.numbers), self.unseen)
        return against_holdout(step, true, unseen, looked=looked)


@dataclass(frozen=True)
class _BesideTwins(_Look):
    """Beside records like them about nobody.

    Twins of the records that most looks do not read are made when these are first asked for, and all at once,
    so that a resumed run has the same.
    """

    known: tuple[Sequence[Record], Sequence[Record]]

    def comparable(self, numbers: Sequence[int]) -> Sequence[int]:
        return [n for n in numbers if self._twin(n) is not None]

    def judged(self, step: int, looked: Looked) -> Check:
        compared = looked.numbers if looked.whole else looked.numbers[: looked.usual]
        twins = [twin for n in compared if (twin := self._twin(n)) is not None]
        true, invented = self.scorer.scores(self.rows(looked.numbers), twins)
        return against_holdout(step, true, invented, control="synthetic", looked=looked)

    def _twin(self, number: int) -> Encoded | None:
        return self._of_chosen[number] if number in self._of_chosen else self._of_others[number]

    @cached_property
    def _of_chosen(self) -> dict[int, Encoded | None]:
        return self._invented(self.chosen)

    @cached_property
    def _of_others(self) -> dict[int, Encoded | None]:
        return self._invented(sorted({*range(len(self.forget))} - {*self.chosen}))

    def _invented(self, numbers: Sequence[int]) -> dict[int, Encoded | None]:
        """Of each record its twin as a row; None where there is none that fits."""
        found: dict[int, Encoded | None] = dict.fromkeys(numbers)
        records = [self.forget[n] for n in numbers]
        twins = synthetic_holdout(records, *self.known, self.scorer.settings.seed)
        for number, twin in zip(numbers, twins, strict=True):
            if twin is not None:
                with suppress(UsageError):  # a longer name may not fit; the record does
                    (found[number],) = self.scorer.rows([twin], "synthetic holdout")
        return found


@dataclass(frozen=True)
class _BesideSwaps(_Look):
    """Beside other records' responses under their prompts."""

    swaps: Sequence[Sequence[str]]

    def comparable(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers

    def judged(self, step: int, looked: Looked) -> Check:
        asked = [(n, Record(self.forget[n].prompt, r)) for n in looked.numbers for r in self.swaps[n]]
        others = self.scorer.rows([record for _, record in asked], "swapped forget")
        true, scored = self.scorer.scores(self.rows(looked.numbers), others)
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
