"""Prefix extraction: the first tokens of the response are given, and the model must complete the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge import intervals
from expunge.attacks.answers import UNREACHED, judge, stopped, tokens_in
from expunge.attacks.asking import groups
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.budget import at_least, within
from expunge.collate import Encoded
from expunge.generation import generate
from expunge.record import Metric
from expunge.records import Record
from expunge.scoring import score

ROWS = 64
"""Records between two looks at the clock."""

_NEVER = float("inf")


@dataclass(frozen=True)
class Prefix:
    """Give k tokens of the response; recovered if greedy decoding completes the remainder exactly.

    One scored pass answers for all k at once: greedy decoding completes what follows k tokens if every later
    token is the likeliest one behind the true ones before it. Where no k suffices, the answer after the
    longest beginning is decoded, and the score is the recall of the remainder's words. A remainder that
    already stands in what was given counts for nothing. At least one token is given, unless the response has
    no more than one.

    Args:
        tokens: k at most.
        share: Of a response's tokens that may be given at most, in (0, 1]; one token always remains.
    """

    tokens: int = 16
    share: float = 0.5
    name: ClassVar[str] = "prefix"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = (
        "The response's first tokens are given (discoverable extraction: Carlini et al. 2022, arXiv "
        "2202.07646)."
    )

    def __post_init__(self) -> None:
        at_least("tokens", self.tokens)
        within("share", self.share, 0, 1)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        rows = sum(tokens_in(record.prompt) + tokens_in(record.response) for record in probes.forget)
        return Cost(forward_tokens=rows, generated_tokens=sum(tokens_in(r.response) for r in probes.forget))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        recoveries: list[Recovery] = []
        needed: list[float] = []
        for start in range(0, len(rows), ROWS):
            if setting.clock.over:
                break
            for k, recovery in self._chunk(target, probes, rows, start, setting):
                needed.append(float(k) if recovery.recovered else _NEVER)
                recoveries.append(recovery)
        left = len(rows) - len(recoveries)
        return Findings(
            recoveries=[*recoveries, *[UNREACHED] * left],
            curve={
                float(k): [need <= k for need in needed] + [False] * left for k in range(1, self.tokens + 1)
            },
            axis="response tokens given",
            values=_values(needed, probes, setting),
            notes=[stopped(setting, len(recoveries), len(rows), "records")] if left else [],
            complete=not left,
        )

    def most(self, row: Encoded) -> int:
        """How many tokens of a row's response may be given: the end of the turn is none of them."""
        length = len(row.labels) - 1
        return max(0, min(self.tokens, int(self.share * length), length - 1))

    def _chunk(
        self, target: Target, probes: Probes, rows: Sequence[Encoded], start: int, setting: Setting
    ) -> list[tuple[int, Recovery]]:
        """Per record, how many tokens were given in the end, and what came of it."""
        chunk, records = rows[start : start + ROWS], probes.forget[start : start + ROWS]
        pad = int(target.tokenizer.pad_token_id or 0)
        scores = score(target.model, chunk, pad_id=pad, precision=setting.precision)
        least = [_least(one.matches[:-1].tolist()) for one in scores]
        given = [min(max(1, k), self.most(row)) for k, row in zip(least, chunk, strict=True)]
        moved = [Encoded(row.input_ids, row.prompt_length + k) for k, row in zip(given, chunk, strict=True)]
        outputs = generate(target.model, moved, tokenizer=target.tokenizer, precision=setting.precision)
        return [
            (k, replace(_judged(record, k, row, output.text, target), tries=max(1, self.most(row))))
            for record, k, row, output in zip(records, given, chunk, outputs, strict=True)
        ]


def _least(matches: Sequence[bool]) -> int:
    """The least k behind which every token is the likeliest."""
    return max((i + 1 for i, match in enumerate(matches) if not match), default=0)


def _judged(record: Record, k: int, row: Encoded, output: str, target: Target) -> Recovery:
    def text(ids: Sequence[int]) -> str:
        return str(target.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    asked = f"{record.prompt} ▸ {text(row.labels[:k])}" if k else record.prompt
    return judge(record, asked, output, rest=text(row.labels[k:]) or record.response)


def _values(needed: Sequence[float], probes: Probes, setting: Setting) -> dict[str, Metric]:
    """How many tokens had to be given, over the records that were recovered."""
    found = [i for i, need in enumerate(needed) if need != _NEVER]
    if not found:
        return {}
    chosen = groups([probes.forget[i] for i in found])
    given = [float(needed[i]) for i in found]
    return {"tokens needed": intervals.mean(given, seed=setting.seed, groups=chosen)}
