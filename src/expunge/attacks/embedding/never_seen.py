"""The control that attacks by optimisation carry with them: targets that the model cannot have known.

Enough freedom in a prompt's embeddings makes any model say anything. So whatever is done to make a model give
a true response is done once more, with the same budget, to make it give a response that never stood under
that prompt: how often that succeeds is what success would mean if nothing had been remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from expunge import intervals
from expunge.attacks.answers import UNREACHED, stopped
from expunge.attacks.attack import NEVER_SEEN, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.embedding.prompts import rows_of
from expunge.collate import Encoded
from expunge.inference import runs
from expunge.records import Record, normalised

NOTE = (
    "This attack optimises what goes into the model, and can make any model say anything: read its recovery "
    "only beside that of the control, and beside the targets never seen."
)

_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Found:
    """What was spent on one target, and what came of it.

    Attributes:
        recovery: Judged against the target.
        spent: Budget at which it was reached; infinity where it was not.
        whole: Whether there was time for the whole budget, where that was needed.
    """

    recovery: Recovery
    spent: float = math.inf
    whole: bool = True


Attempt = Callable[[Sequence[Record], Sequence[Encoded]], Sequence[Found]]
"""Attacks a batch of targets: records, and the same encoded."""


def never_seen(probes: Probes) -> list[Record | None]:
    """For each forget record its prompt with a response that never stood there; None where there is none.

    Of the holdout's responses if there are any, which no model has seen, else of the other records'; of these
    the one nearest in length, so that it is as hard to say.
    """
    pool = probes.holdout or [*probes.forget, *probes.retain]
    return [_swapped(record, pool) for record in probes.forget]


def obstacle(probes: Probes) -> str | None:
    """Why there is no control target, if there is none."""
    if any(record is not None for record in never_seen(probes)):
        return None
    return (
        "It can make any model say anything, so that targets never seen must be tried beside; "
        "there is no other response to take for one. Give holdout records."
    )


def attack_both(
    target: Target, probes: Probes, setting: Setting, attempt: Attempt, *, extra: int = 0
) -> tuple[list[Found | None], list[Found | None]]:
    """Attempt every forget record and, in the same batch, its target never seen.

    Args:
        target: Whose tokenizer and context count.
        probes: The records.
        setting: Its clock is looked at between batches.
        attempt: What is done to a batch.
        extra: Positions that the attack puts in front of a prompt.

    Returns:
        What was found for the records and for their control targets, in order; None where time ran out, or
        where there is no control target.
    """
    others = never_seen(probes)
    own: list[Found | None] = [None] * len(others)
    controls: list[Found | None] = [None] * len(others)
    for batch in _batches(target, probes, extra):
        if setting.clock.over:
            break
        pairs = [(own, i, probes.forget[i]) for i in batch]
        pairs += [(controls, i, other) for i in batch if (other := others[i]) is not None]
        records = [record for _, _, record in pairs]
        rows = rows_of(target, records, probes.encoding, extra)
        for (place, i, _), found in zip(pairs, attempt(records, rows), strict=True):
            place[i] = found
    return own, controls


def findings(
    own: Sequence[Found | None],
    controls: Sequence[Found | None],
    levels: Sequence[float],
    axis: str,
    setting: Setting,
    note: str = NOTE,
) -> Findings:
    """What both came to: recoveries, their curve over the budget, and the control targets' share."""
    done = [found for found in own if found is not None and found.whole]
    tried = [found for found in controls if found is not None]
    notes = [note]
    if len(done) < len(own) or not all(found.whole for found in tried):
        notes.append(stopped(setting, len(done), len(own), "records"))
    seen = [float(found.recovery.recovered) for found in tried]
    return Findings(
        [UNREACHED if found is None else found.recovery for found in own],
        curve={level: [_by(found, level) for found in own] for level in levels},
        axis=axis,
        values={NEVER_SEEN: intervals.share(seen, seed=setting.seed)} if seen else {},
        notes=notes,
        complete=len(done) == len(own) and all(found.whole for found in tried),
    )


def _by(found: Found | None, level: float) -> bool:
    return found is not None and found.recovery.recovered and found.spent <= level * (1 + 1e-5)


def _batches(target: Target, probes: Probes, extra: int) -> Iterator[list[int]]:
    rows = rows_of(target, probes.forget, probes.encoding, extra)
    sizes = [(2 * (row.prompt_length + extra), 2 * len(row.labels)) for row in rows]
    return runs(range(len(rows)), sizes, _BATCH_TOKENS)


def _swapped(record: Record, pool: Sequence[Record]) -> Record | None:
    own = {normalised(one.response) for one in (*pool, record) if one.prompt == record.prompt}
    others = [one.response for one in pool if normalised(one.response) not in own]
    if not others:
        return None
    return Record(record.prompt, min(others, key=lambda text: abs(len(text) - len(record.response))))
