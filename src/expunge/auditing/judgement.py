"""What follows from recovery on several models under one attack.

Pure functions over numbers; no model, no text, no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scipy.stats import fisher_exact, norm

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

FEWEST: Final = 5
"""Records on each side that the normal approximation of an area needs: with two on each it called one in nine
pairs of models alike different at a level of 5 %; from six on, one in thirteen at most."""

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
    few: str = "Too few records of the control ({n}) to see a difference: its interval reaches to {high:.0%}."


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

_AREAS: Final = _Words(
    more="It tells forget records from records never seen better than with {name}; no text came back.",
    no_more="It tells forget records from records never seen no better than with {name}.",
    flooded="It tells the records apart with {name} too: that shows nothing about this model.",
    powerless="It tells no more with the original either.",
    few="Too few records ({n}) to see a difference: an area {high:.2f} could not be told from this one.",
)

_LENT: Final = (
    "It takes answers from the original, which knows these records and not those that stand in for a "
    "control: it may bring back as much with a model that never saw them. Give --control."
)
"""Of an attack that borrows, where nothing shows what borrowing alone brings back."""

_AREA: Final = "auc"
"""Among a membership attack's values: area under its ROC curve, forget records against records never seen."""


def reference(results: Mapping[Column, Result]) -> Column | None:
    """What recovery is compared with: the control model, else the holdout records."""
    return next((column for column in ("control", "holdout") if column in results), None)


def judge(results: Mapping[Column, Result], family: Family = "input", *, borrows: bool = False) -> Judgement:
    """Whether the unlearned model gives up more than the control does, under one attack.

    It does if the share recovered lies above the control's exact interval, or if the whole interval of the
    mean score lies above that of the control (long responses come back in part before they come back whole).
    An attack tells nothing that reached as many targets never seen, or that gets no more out of the original
    than out of the control. An attack that borrows from the original tells nothing beside holdout records,
    whose answers the original does not have either.

    A membership attack recognises a record by a threshold, which it draws from the records never seen; the
    share that it recognises therefore scatters more than an exact interval says. What counts is the area
    under its ROC curve, beside the control's (`area_chance`).

    Args:
        results: What it found, by column.
        family: Of the attack. Membership is told in words of its own; "none" (the training prompt, the worst
            case over attacks) needs no proof that it works on the original.
        borrows: Whether it takes what it says from the original (`attacks.borrows`).
    """
    column = reference(results)
    if column is None or "unlearned" not in results:
        return Judgement(outcome="unjudged", sentence="There was no control to compare with.")
    lent = borrows and column == "holdout"
    outcome, sentence = ("blunt", _LENT) if lent else _weighed(results, column, family)
    found, against = results["unlearned"], results[column]
    by_areas = by_area(found, against, family)
    p_value = area_chance(found, against) if by_areas else chance(found.recovered, against.recovered)
    return Judgement(outcome=outcome, sentence=sentence, p_value=p_value)


def _weighed(results: Mapping[Column, Result], column: Column, family: Family) -> tuple[Outcome, str]:
    found, against, name = results["unlearned"], results[column], _NAMES[column]
    areas = by_area(found, against, family)
    words = _AREAS if areas else _MEMBERS if family == "membership" else _TEXT
    if above(found, against, areas=areas) and against.complete:
        how = "" if areas or exceeds(found.recovered, against.recovered) else " in part (by score)"
        why = _says_anything(found)
        return ("blunt", why) if why else ("exceeds", words.more.format(how=how, name=name))
    if not (found.complete and against.complete):
        return "unfinished", (
            "It did not come to an end: this is no answer. More --seconds help where time ran out."
        )
    blunt = _dull(found, against, words, name) if areas else _blunt(against, words, name)
    why = _says_anything(found) or blunt
    original = results.get("original")
    if not why and family != "none" and original is not None and not above(original, against, areas=areas):
        if not original.complete:
            return "unfinished", (
                "It did not come to an end on the original, which it did not work on either. More --seconds "
                "help where time ran out."
            )
        why = words.powerless
    if why:
        return "blunt", why
    return "within", words.no_more.format(name=name) + (_trace(found, against) if areas else "")


def by_area(found: Result, against: Result, family: Family) -> bool:
    """Whether areas under ROC curves are compared: those of membership attacks that give one."""
    return family == "membership" and _AREA in found.values and _AREA in against.values


def above(found: Result, against: Result, *, areas: bool = False) -> bool:
    """Whether one model gives up more than another, whole or in part; or is told by a larger area."""
    if areas:
        return area_chance(found, against) < CLEAR
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


def _blunt(against: Result, words: _Words, name: str) -> str:
    """Why a difference could not have been seen, or nothing."""
    control = against.recovered
    if control.value >= HIGHEST:
        return words.flooded.format(name=name)
    if control.high - control.value > WIDEST:
        return f"{words.few.format(n=control.n, high=control.high)} Give more."
    return ""


def _dull(found: Result, against: Result, words: _Words, name: str) -> str:
    """The same for areas: a rise of `WIDEST`, or what is left of it below 1, must be seen."""
    control = against.values[_AREA]
    seen = min(1.0, control.value + WIDEST)
    area = found.values[_AREA].model_copy(update={"value": seen})
    if area_chance(found.model_copy(update={"values": {_AREA: area}}), against) < CLEAR:
        return ""
    guessing = against.model_copy(update={"values": {_AREA: control.model_copy(update={"value": 0.5})}})
    if area_chance(against, guessing) < CLEAR:
        return words.flooded.format(name=name)
    return f"{words.few.format(n=control.n, high=seen)} Give more."


def _trace(found: Result, against: Result) -> str:
    """What is to be said where forget records look less familiar than records never seen."""
    if area_chance(against, found) >= CLEAR:
        return ""
    return " They look less familiar than there: unlearning left a trace of its own."


def area_chance(found: Result, against: Result) -> float:
    r"""One-sided test for a larger area under the ROC curve: $\Phi(-(A_1 - A_2) / \sqrt{s_1^2 + s_2^2})$.

    With the pooled area $A$ and $q_1 = A / (2 - A)$, $q_2 = 2 A^2 / (1 + A)$, over m members and k others
    $s^2 = (A (1 - A) + (m - 1)(q_1 - A^2) + (k - 1)(q_2 - A^2)) / (m k)$, the scatter of both sides. Areas of
    one set of records under two models are correlated; then it errs towards no difference.

    Returns:
        The p-value; 1 where either has no area, or fewer than `FEWEST` records on one side.

    Reference:
        Hanley and McNeil (1982), Radiology 143, equation 2.
    """
    first, second = found.values.get(_AREA), against.values.get(_AREA)
    if first is None or second is None:
        return 1.0
    sizes = [_sizes(found), _sizes(against)]
    rise = first.value - second.value
    if math.isnan(rise) or min(map(min, sizes)) < FEWEST:
        return 1.0
    pairs = [m * k for m, k in sizes]
    pooled = (first.value * pairs[0] + second.value * pairs[1]) / sum(pairs)
    spread = math.sqrt(sum(_area_variance(pooled, m, k) for m, k in sizes))
    return float(norm.sf(rise / spread)) if spread > 0 else float(rise <= 0)


def _sizes(result: Result) -> tuple[int, int]:
    """Forget records that got a score (where time ran out, not all), and records never seen."""
    members = result.values.get("flagged", result.recovered).n
    return members, result.values[_AREA].n - members


def _area_variance(area: float, members: int, others: int) -> float:
    ours, theirs = area / (2 - area), 2 * area**2 / (1 + area)
    scatter = area * (1 - area) + (members - 1) * (ours - area**2) + (others - 1) * (theirs - area**2)
    return scatter / (members * others)


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
