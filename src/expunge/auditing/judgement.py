"""What follows from recovery on several models under one attack.

Pure functions over numbers; no model, no text, no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scipy.stats import fisher_exact

from expunge import intervals
from expunge.attacks import NEVER_SEEN, Family
from expunge.audit_record import Column, Judgement, Outcome, Result
from expunge.record import Metric

WIDEST: Final = 0.3
"""How far above the control's recovery its interval may reach for "within" to mean something."""

HIGHEST: Final = 0.5
"""Recovery from the control from which on an attack is taken to make any model say anything."""

CLEAR: Final = 0.05
"""Level of the test that must find a difference from so high a control, whose interval ends just below 1."""

_NAMES: Final[Mapping[Column, str]] = {
    "control": "the control model",
    "holdout": "records that it never saw",
    "original": "the original model",
    "unlearned": "the unlearned model",
}


@dataclass(frozen=True, slots=True)
class _Words:
    """How a family's findings are told; {how} says by what, {name} beside whom."""

    more: str
    no_more: str
    flooded: str
    powerless: str


_TEXT: Final = _Words(
    more="More came back{how} than from {name}.",
    no_more="No more came back than from {name}.",
    flooded="It makes {name} say the responses too: what it recovers shows nothing about this model.",
    powerless="It brings nothing back from the original either.",
)

_MEMBERS: Final = _Words(
    more="More were recognised as members{how} than with {name}; no text came back.",
    no_more="No more were recognised as members than with {name}.",
    flooded="It takes half or more for members with {name} too: that shows nothing about this model.",
    powerless="It recognises nothing with the original either.",
)


def reference(results: Mapping[Column, Result]) -> Column | None:
    """What recovery is compared with: the control model, else the holdout records."""
    return next((column for column in ("control", "holdout") if column in results), None)


def judge(results: Mapping[Column, Result], family: Family = "input") -> Judgement:
    """Whether the unlearned model gives up more than the control does, under one attack.

    It does if the share recovered lies above the control's exact interval, or if the whole interval of the
    mean score lies above that of the control (long responses come back in part before they come back whole).
    An attack tells nothing that reached as many targets never seen, or that gets no more out of the original
    than out of the control.

    Args:
        results: What it found, by column.
        family: Of the attack. Membership is told in words of its own; "none" (the training prompt, the worst
            case over attacks) needs no proof that it works on the original.
    """
    column = reference(results)
    if column is None or "unlearned" not in results:
        return Judgement(outcome="unjudged", sentence="There was no control to compare with.")
    outcome, sentence = _weighed(results, column, family)
    p_value = chance(results["unlearned"].recovered, results[column].recovered)
    return Judgement(outcome=outcome, sentence=sentence, p_value=p_value)


def _weighed(results: Mapping[Column, Result], column: Column, family: Family) -> tuple[Outcome, str]:
    found, against, name = results["unlearned"], results[column], _NAMES[column]
    words = _MEMBERS if family == "membership" else _TEXT
    if above(found, against) and against.complete:
        how = "" if exceeds(found.recovered, against.recovered) else " in part (by score)"
        why = _says_anything(found)
        return ("blunt", why) if why else ("exceeds", words.more.format(how=how, name=name))
    if not (found.complete and against.complete):
        return "unfinished", (
            "Time ran out before it had tried everything: this is no answer. Give more --seconds."
        )
    why = _says_anything(found) or _blunt(against.recovered, words, name)
    original = results.get("original")
    if not why and family != "none" and original is not None and not above(original, against):
        if not original.complete:
            return "unfinished", "Time ran out before it had worked on the original. Give more --seconds."
        why = words.powerless
    return ("blunt", why) if why else ("within", words.no_more.format(name=name))


def above(found: Result, against: Result) -> bool:
    """Whether one model gives up more than another, whole or in part."""
    return exceeds(found.recovered, against.recovered) or found.score.low > against.score.high


def exceeds(found: Metric, against: Metric) -> bool:
    """Whether a share of records lies above the interval of another."""
    clear = against.value < HIGHEST or chance(found, against) < CLEAR
    return found.value > against.high and clear


def least_seen(results: Mapping[Column, Result]) -> float:
    """The smallest share of the unlearned model's records that would have exceeded; above 1: none would."""
    column = reference(results)
    assert column is not None
    n, high = results["unlearned"].recovered.n, results[column].recovered.high
    return next((hits / n for hits in range(n + 1) if hits / n > high), 1 + 1 / n)


def _says_anything(found: Result) -> str:
    """Why what was reached on the unlearned model would have been reached without any memory, or nothing.

    Where time ran out, numbers are compared, since shares count the records that it never came to.
    """
    never, own = found.values.get(NEVER_SEEN), found.recovered
    if never is None or never.value == 0:
        return ""
    fewer = never.value < own.value if found.complete else _hits(never) < _hits(own)
    if fewer:
        return ""
    return (
        f"It reached at least as many targets that never stood there ({_hits(never)} of {never.n}) as true "
        f"ones ({_hits(own)} of {own.n}): it makes any model say anything."
    )


def _blunt(control: Metric, words: _Words, name: str) -> str:
    """Why a difference could not have been seen, or nothing."""
    if control.value >= HIGHEST:
        return words.flooded.format(name=name)
    if control.high - control.value > WIDEST:
        reach = f"its interval reaches to {control.high:.0%}"
        return f"Too few records of the control ({control.n}) to see a difference: {reach}. Give more."
    return ""


def chance(found: Metric, against: Metric) -> float:
    """One-sided Fisher's exact test: probability of so many successes more, were the rates the same."""
    hits, others = _hits(found), _hits(against)
    table = [[hits, found.n - hits], [others, against.n - others]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _hits(metric: Metric) -> int:
    return round(metric.value * metric.n)


def share(flags: Sequence[bool]) -> Metric:
    """Share of records with its exact interval."""
    return intervals.exact_share(flags)
