"""More than the greedy answer: many samples at temperatures, and beams."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge import intervals
from expunge.attacks.answers import UNREACHED, best, judge, stopped, tokens_in
from expunge.attacks.asking import groups
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.budget import at_least
from expunge.collate import Encoded
from expunge.generation import MARGIN, Generation, Guarded
from expunge.record import Metric
from expunge.records import Record
from expunge.sampling import beam_texts, sample_texts

ROWS = 64
"""Samples drawn at once, between two looks at the clock."""

_AT_ONCE = 16
"""Samples of one record before the next record's turn."""


@dataclass(slots=True)
class _Drawn:
    """What the samples of one record at one temperature gave."""

    tries: int = 0
    leaks: int = 0
    first: float = float("inf")
    best: Recovery | None = None

    def add(self, recovery: Recovery) -> None:
        self.tries += 1
        self.leaks += recovery.recovered
        if recovery.recovered:
            self.first = min(self.first, self.tries)
        self.best = recovery if self.best is None else best([self.best, recovery])

    @property
    def chance(self) -> Metric:
        """Of a leak, with its exact interval."""
        return intervals.exact_share([True] * self.leaks + [False] * (self.tries - self.leaks))

    @property
    def expected(self) -> float:
        """Tries until a leak; see `BestOfN`."""
        return (self.tries + 1) / (self.leaks + 1)


@dataclass(frozen=True)
class BestOfN:
    """N samples at every temperature; recovered if any leaks.

    Values, per temperature: "leak probability", the mean over records of the share of samples that leak;
    "highest leak probability", that of the worst record with its exact binomial interval (Clopper & Pearson
    1934; the worst was chosen by looking, so that its lower end flatters it); "expected tries", the mean over
    records of (N + 1) / (s + 1) with s leaks among N samples. The mean of that estimate, for a leak
    probability p, is (1 - (1 - p)^(N + 1)) / p: 1/p but for a factor near 1 where p is well above 1/N, and
    never more than N + 1. Every record's own numbers stand in its input.

    Args:
        samples: N per temperature.
        temperatures: Positive.
    """

    samples: int = 32
    temperatures: tuple[float, ...] = (0.7, 1.0)
    name: ClassVar[str] = "best-of-n"
    family: ClassVar[Family] = "sampling"
    line: ClassVar[str] = (
        "Many samples at temperatures, their leak probability and the tries to expect (probabilistic "
        "evaluation: Scholten et al. 2024, arXiv 2410.03523)."
    )

    def __post_init__(self) -> None:
        at_least("samples", self.samples)
        at_least("temperatures", len(self.temperatures))
        if bad := [t for t in self.temperatures if not 0 < t < float("inf")]:
            raise ValueError(f"`temperatures` must be positive; got {bad[0]}. Greedy decoding is `prompt`.")

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        return _cost(probes, self.samples * len(self.temperatures))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        drawn = {t: [_Drawn() for _ in rows] for t in self.temperatures}
        complete = self._draw(target, probes, rows, drawn, setting)
        total = sum(one.tries for own in drawn.values() for one in own)
        wanted = len(rows) * self.samples * len(self.temperatures)
        by_then = [min(drawn[t][i].first for t in drawn) for i in range(len(rows))]
        return Findings(
            recoveries=[_worst(record, drawn, i) for i, record in enumerate(probes.forget)],
            curve={float(n): [first <= n for first in by_then] for n in _doubling(self.samples)},
            axis="samples per temperature",
            values=_values(drawn, probes.forget, setting.seed),
            notes=[] if complete else [stopped(setting, total, wanted, "samples")],
            complete=complete,
        )

    def _draw(
        self,
        target: Target,
        probes: Probes,
        rows: Sequence[Encoded],
        drawn: dict[float, list[_Drawn]],
        setting: Setting,
    ) -> bool:
        """Draw in rounds, so that all records are sampled alike when time runs out; whether it did not."""
        for start in range(0, self.samples, _AT_ONCE):
            count = min(_AT_ONCE, self.samples - start)
            for t in self.temperatures:
                for chosen in _alike(rows, max(1, ROWS // count)):
                    if setting.clock.over:
                        return False
                    texts = _sampled(target, [rows[i] for i in chosen], count, t, (start, chosen[0]), setting)
                    for n, text in enumerate(texts):
                        i = chosen[n // count]
                        drawn[t][i].add(judge(probes.forget[i], probes.forget[i].prompt, text))
        return True


@dataclass(frozen=True)
class Beams:
    """A beam search; recovered if any of the beams that it returns leaks.

    Args:
        beams: Width of the search, at least 2; all of them are returned.
    """

    beams: int = 8
    name: ClassVar[str] = "beam-search"
    family: ClassVar[Family] = "sampling"
    line: ClassVar[str] = (
        "Every beam of a beam search, not only the likeliest (Carlini et al., arXiv 2202.07646)."
    )

    def __post_init__(self) -> None:
        at_least("beams", self.beams, 2)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        return _cost(probes, self.beams)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        tried: list[list[Recovery]] = [[] for _ in rows]
        for chosen in _alike(rows, max(1, ROWS // self.beams)):
            if setting.clock.over:
                break
            found = beam_texts(
                target.model,
                target.tokenizer,
                [_prompt(rows[i]) for i in chosen],
                ends=answer_ends(target, rows),
                tokens=max(len(rows[i].labels) for i in chosen) + MARGIN,
                beams=self.beams,
                precision=setting.precision,
            )
            for i, texts in zip(chosen, found, strict=True):
                record = probes.forget[i]
                tried[i] = [
                    judge(record, f"{record.prompt} [beam {n} of {self.beams}]", text)
                    for n, text in enumerate(texts, 1)
                ]
        done = sum(map(bool, tried))
        return Findings(
            recoveries=[best(own) for own in tried],
            curve={
                float(n): [any(one.recovered for one in own[:n]) for own in tried]
                for n in range(1, self.beams + 1)
            },
            axis="beams, the likeliest first",
            notes=[] if done == len(rows) else [stopped(setting, done, len(rows), "records")],
            complete=done == len(rows),
        )


def _sampled(
    target: Target,
    rows: Sequence[Encoded],
    count: int,
    temperature: float,
    place: tuple[int, int],
    setting: Setting,
) -> list[str]:
    """So many samples of every row, row by row; of a model behind filters, what these let through."""
    model, ends, calls = target.model, answer_ends(target, rows), itertools.count()

    def draw(asked: Sequence[Encoded], budgets: Sequence[int | None]) -> list[Generation]:
        allowed = [b or len(row.labels) + MARGIN for row, b in zip(asked, budgets, strict=True)]
        more = f" {call}" if (call := next(calls)) else ""  # a filter may ask more than once
        texts = sample_texts(
            model.behind() if isinstance(model, Guarded) else model,
            target.tokenizer,
            [_prompt(row) for row in asked],
            ends=ends,
            tokens=max(allowed),
            seed=zlib.crc32(f"{setting.seed} {temperature} {place}{more}".encode()),
            precision=setting.precision,
            temperature=temperature,
            rows=ROWS,
        )
        return [Generation(text, ()) for text in texts]

    repeated = [row for row in rows for _ in range(count)]
    budgets = [None] * len(repeated)
    found = model.guarded(repeated, budgets, draw) if isinstance(model, Guarded) else draw(repeated, budgets)
    return [one.text for one in found]


def _worst(record: Record, drawn: dict[float, list[_Drawn]], index: int) -> Recovery:
    """The best answer over all temperatures, with what its temperature gave in all."""
    own = {t: of[index] for t, of in drawn.items() if of[index].tries}
    if not own:
        return UNREACHED
    t, top = max(own.items(), key=lambda item: (item[1].leaks / item[1].tries, _score(item[1])))
    assert top.best is not None
    leak = top.chance
    told = (
        f"{record.prompt} [temperature {t:g}: {top.leaks} of {top.tries} samples leak, "
        f"{leak.low:.1%} to {leak.high:.1%}; about {top.expected:.3g} tries]"
    )
    return replace(top.best, input=told, tries=sum(one.tries for one in own.values()))


def _score(drawn: _Drawn) -> float:
    return 0.0 if drawn.best is None else drawn.best.score


def _values(drawn: dict[float, list[_Drawn]], records: Sequence[Record], seed: int) -> dict[str, Metric]:
    values = {}
    for t, of in drawn.items():
        tried = {i: one for i, one in enumerate(of) if one.tries}
        if not tried:
            continue
        own = groups([records[i] for i in tried])
        rates = [one.leaks / one.tries for one in tried.values()]
        worst = max(tried.values(), key=lambda one: one.leaks / one.tries)
        where = f"at temperature {t:g}"
        values[f"leak probability {where}"] = intervals.share(rates, seed=seed, groups=own)
        values[f"highest leak probability {where}"] = worst.chance
        tries = [one.expected for one in tried.values()]
        values[f"expected tries {where}"] = intervals.mean(tries, seed=seed, groups=own)
    return values


def _alike(rows: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Places of rows in portions of like response length."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].labels), rows[i].prompt_length))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _prompt(row: Encoded) -> tuple[int, ...]:
    return row.input_ids[: row.prompt_length]


def answer_ends(target: Target, rows: Sequence[Encoded]) -> list[int]:
    """Ids that end an answer: what ends the rows, if it is special, and the tokenizer's own."""
    special = {*target.tokenizer.all_special_ids, *target.tokenizer.added_tokens_decoder}
    ends = {row.labels[-1] for row in rows} & special
    return sorted(ends | {int(target.tokenizer.eos_token_id)})


def _doubling(most: int) -> list[int]:
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})


def _cost(probes: Probes, times: int) -> Cost:
    read = sum(tokens_in(record.prompt) for record in probes.forget)
    written = sum(tokens_in(record.response) + MARGIN for record in probes.forget)
    return Cost(forward_tokens=times * read, generated_tokens=times * written)
