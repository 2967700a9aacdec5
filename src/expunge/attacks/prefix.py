"""Prefix extraction: the first tokens of the response are given, and the model must complete the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge import intervals
from expunge.attacks.asking import ROWS, groups, tokens
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.budget import at_least, within
from expunge.attacks.verdicts import closeness
from expunge.collate import Encoded
from expunge.generation import generate
from expunge.record import Metric
from expunge.scoring import TokenScores, score


@dataclass(frozen=True)
class Prefix:
    """Give k tokens of the response; recovered if greedy decoding completes the remainder exactly.

    One scored pass answers for all k at once: greedy decoding completes what follows k tokens if every later
    token is the likeliest one behind the true ones before it. Where no k suffices, the answer after the
    longest beginning is decoded, and the score is the recall of the remainder's words.

    Args:
        tokens: k at most.
        share: Of a response's tokens that may be given at most, in (0, 1); at least one token remains.
    """

    tokens: int = 16
    share: float = 0.5
    name: str = "prefix"
    family: Family = "input"
    line: str = (
        "The response's first tokens are given (Carlini et al. 2022, arXiv 2202.07646: discoverable "
        "extraction)."
    )

    def __post_init__(self) -> None:
        at_least("tokens", self.tokens)
        within("share", self.share, 0, 1)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        rows = sum(tokens(record.prompt) + tokens(record.response) for record in probes.forget)
        return Cost(forward_tokens=rows, generated_tokens=sum(tokens(r.response) for r in probes.forget))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        recoveries: list[Recovery] = []
        needed: list[float] = []
        for start in range(0, len(rows), ROWS):
            if setting.clock.over:
                break
            chunk = rows[start : start + ROWS]
            scores = self._scores(target, chunk, setting)
            needed += [self._needed(row, one) for row, one in zip(chunk, scores, strict=True)]
            outputs = self._continued(target, chunk, setting)
            recoveries += [
                self._recovery(row, need, output, target)
                for row, need, output in zip(chunk, needed[start:], outputs, strict=True)
            ]
        reached, left = len(recoveries), len(rows) - len(recoveries)
        note = f"Stopped after {setting.clock.seconds:g} s: {reached} of {len(rows)} records were tried."
        return Findings(
            recoveries=[*recoveries, *[Recovery(0.0, False, tries=0)] * left],
            curve={
                float(k): [need <= k for need in needed] + [False] * left for k in range(self.tokens + 1)
            },
            axis="response tokens given",
            values=_values(needed, probes, setting),
            notes=[note] if left else [],
            complete=not left,
        )

    def most(self, row: Encoded) -> int:
        """How many tokens of a row's response may be given: the end of the turn is none of them."""
        length = len(row.labels) - 1
        return max(0, min(self.tokens, int(self.share * length), length - 1))

    def _scores(self, target: Target, rows: Sequence[Encoded], setting: Setting) -> list[TokenScores]:
        pad = target.tokenizer.pad_token_id or 0
        return score(target.model, rows, pad_id=int(pad), precision=setting.precision)

    def _needed(self, row: Encoded, scores: TokenScores) -> float:
        """The least k after which the rest is completed; infinite where none that is allowed suffices."""
        wrong = [i for i, match in enumerate(scores.matches[: len(row.labels) - 1].tolist()) if not match]
        least = wrong[-1] + 1 if wrong else 0
        return least if least <= self.most(row) else float("inf")

    def _continued(self, target: Target, rows: Sequence[Encoded], setting: Setting) -> list[str]:
        """What greedy decoding gives behind the longest beginning."""
        given = [Encoded(row.input_ids, row.prompt_length + self.most(row)) for row in rows]
        found = generate(target.model, given, tokenizer=target.tokenizer, precision=setting.precision)
        return [generation.text for generation in found]

    def _recovery(self, row: Encoded, needed: float, output: str, target: Target) -> Recovery:
        recovered = needed != float("inf")
        k = int(needed) if recovered else self.most(row)

        def text(ids: Sequence[int]) -> str:
            return str(target.tokenizer.decode(list(ids), skip_special_tokens=True))

        remainder = text(row.labels[k:]).strip()
        return Recovery(
            score=1.0 if recovered else closeness(output, remainder),
            recovered=recovered,
            input=f"{text(row.input_ids[: row.prompt_length])}{text(row.labels[:k])}",
            output=remainder if recovered else output,
            tries=self.most(row) + 1,
        )


def _values(needed: Sequence[float], probes: Probes, setting: Setting) -> dict[str, Metric]:
    """How many tokens had to be given, over the records that were recovered."""
    found = [i for i, need in enumerate(needed) if need != float("inf")]
    if not found:
        return {}
    chosen = groups([probes.forget[i] for i in found])
    given = [float(needed[i]) for i in found]
    return {"tokens needed": intervals.mean(given, seed=setting.seed, groups=chosen)}
