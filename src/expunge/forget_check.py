"""The look at the forget records during a run: which rows, against which control, in one scored pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded, Encoding
from expunge.errors import UsageError
from expunge.inference import Precision
from expunge.record import Check
from expunge.records import Record, Records, swap_responses
from expunge.scoring import TokenScores
from expunge.stopping import against_holdout, against_swaps, with_earlier
from expunge.synthetic_holdout import synthetic_holdout
from expunge.tables import Part, examine

SWAPS = 3

BATCH_TOKENS = 4096
"""Small, since the training's own memory stays taken."""

ForgetCheck = Callable[[int], Check]
"""Takes the optimizer steps taken so far."""

Row = TypeVar("Row")


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
    """A look at a fixed sample of forget records; None where there is nothing to compare them with.

    Args:
        model: In training; scored in evaluation mode. With `earlier`, it is looked at once right now.
        tokenizer: Its tokenizer.
        forget: Records to forget.
        holdout: Rows never seen. None makes some (`synthetic_holdout`), and where the records hold too few
            names for that, compares with other records' responses to the same prompt.
        settings: See `CheckSettings`.
        retain: Records to keep, which lend the synthetic ones names and numbers.
        earlier: Records that earlier requests removed: a look is met only while they stay forgotten.
    """
    known = [*forget, *(earlier or ())], retain
    look = _one_set(model, tokenizer, forget, holdout, settings, known)
    again = _one_set(model, tokenizer, earlier, holdout, settings, known) if earlier else None
    if look is None or again is None:
        return look
    now, start = look, again(0)
    return lambda step: with_earlier(now(step), again(step), start)


def _one_set(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Records,
    holdout: Sequence[Encoded] | None,
    settings: CheckSettings,
    known: tuple[Sequence[Record], Sequence[Record]],
) -> ForgetCheck | None:

    def encoded(records: Sequence[Record], name: str) -> list[Encoded]:
        return settings.encoding.rows(records, tokenizer, name=name)

    def scores(groups: Sequence[Sequence[Encoded]]) -> list[list[TokenScores]]:
        parts = {str(i): Part(rows) for i, rows in enumerate(groups)}
        tables = examine(model, tokenizer, parts, precision=settings.precision, batch_tokens=BATCH_TOKENS)
        return [table.scores for table in tables.values()]

    chosen, total = sample(range(len(forget)), settings.rows, settings.seed), len(forget)
    if holdout:
        rows = encoded([forget[i] for i in chosen], "forget")
        unseen = sample(holdout, settings.rows, settings.seed)
        return lambda step: against_holdout(step, *scores([rows, unseen]), numbers=chosen, total=total)
    twins = _twins([forget[i] for i in chosen], settings, known, encoded)
    if 2 * len(twins) >= len(chosen):
        numbers = [chosen[i] for i in twins]
        real, invented = map(list, zip(*twins.values(), strict=True))
        return lambda step: against_holdout(
            step, *scores([real, invented]), control="synthetic", numbers=numbers, total=total
        )
    rows = encoded([forget[i] for i in chosen], "forget")
    swaps = swap_responses(forget, SWAPS, settings.seed)
    others = [encoded([Record(forget[i].prompt, r) for r in swaps[i]], "swapped forget") for i in chosen]
    if not any(others):
        return None

    def look(step: int) -> Check:
        true, *swapped = scores([rows, *others])
        return against_swaps(step, true, swapped)

    return look


def _twins(
    chosen: Sequence[Record],
    settings: CheckSettings,
    known: tuple[Sequence[Record], Sequence[Record]],
    encoded: Callable[[Sequence[Record], str], list[Encoded]],
) -> dict[int, tuple[Encoded, Encoded]]:
    """Of the records that have a synthetic twin that fits, by their place: both as rows."""
    pairs: dict[int, tuple[Encoded, Encoded]] = {}
    twins = synthetic_holdout(chosen, *known, settings.seed)
    for place, (record, twin) in enumerate(zip(chosen, twins, strict=True)):
        (real,) = encoded([record], "forget")
        if twin is not None:
            with suppress(UsageError):  # a longer name may not fit; the record does
                (invented,) = encoded([twin], "synthetic holdout")
                pairs[place] = real, invented
    return pairs


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows at most, drawn once, in their old order."""
    if len(rows) <= count:
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), size=count, replace=False)
    return [rows[i] for i in sorted(chosen.tolist())]
