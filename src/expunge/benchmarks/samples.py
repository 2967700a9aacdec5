"""Which records a page shows, with what each model said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.benchmarks.benchmark import Answer, Measured
from expunge.record import Sample, Stage


def samples(measured: Mapping[Stage, Measured], limit: int = 24) -> list[Sample]:
    """Answers to show: up to `limit` of a forget split, half as many of other splits.

    Records that the unlearned model still gives away (of a forget split) or no longer gives (elsewhere) come
    first, so that a table never hides a failure; the rest is spread evenly over the split. Records keep their
    order.

    Args:
        measured: Stage -> what was measured there, on the same records.
        limit: At least 1.
    """
    shown = []
    for split in dict.fromkeys(split for found in measured.values() for split in found.answers):
        answers = {stage: found.answers[split] for stage, found in measured.items() if split in found.answers}
        most = limit if _is_forget(split) else max(1, limit // 2)
        count = min(map(len, answers.values()))
        rows = _choose(count, [i for i in _failures(split, answers) if i < count], most)
        shown += [_sample(split, row, answers) for row in rows]
    return shown


def _is_forget(split: str) -> bool:
    return split.startswith("forget")


def _failures(split: str, answers: Mapping[Stage, Sequence[Answer]]) -> list[int]:
    """Rows of forget that the unlearned model still gives, rows of another split that it lost."""
    after = answers.get("after", ())
    if _is_forget(split):
        return [i for i, answer in enumerate(after) if answer.leaked]
    before = answers.get("before", ())
    return [
        i
        for i, (old, new) in enumerate(zip(before, after, strict=False))
        if old.leaked and new.leaked is False
    ]


def _choose(rows: int, failed: Sequence[int], limit: int) -> list[int]:
    chosen = list(failed[:limit])
    rest = [i for i in range(rows) if i not in set(failed)]
    spread = np.linspace(0, len(rest) - 1, min(limit - len(chosen), len(rest))).round().astype(int)
    return sorted([*chosen, *(rest[i] for i in spread)])


def _sample(split: str, row: int, answers: Mapping[Stage, Sequence[Answer]]) -> Sample:
    said = {stage: found[row] for stage, found in answers.items()}
    first = next(iter(said.values()))
    return Sample(
        split=split,
        prompt=first.prompt,
        response=first.response,
        generations={stage: a.generation for stage, a in said.items() if a.generation is not None},
        nll={stage: a.nll for stage, a in said.items() if a.nll is not None},
        leaked={stage: a.leaked for stage, a in said.items() if a.leaked is not None},
    )
