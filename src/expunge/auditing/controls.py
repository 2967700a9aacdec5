"""Whether a control can have seen the forget records, from what it says to their own prompts.

Pure functions over numbers; no model, no text, no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from expunge.audit_record import Result
from expunge.auditing.judgement import chance, share
from expunge.record import Metric

SURE: Final = 0.01
"""Level of the test that finds a control that knows the data."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What a reader must know about a control that was not refused.

    Attributes:
        sentence: Says it, with the numbers.
        bars: Whether nothing may be called erased beside it.
    """

    sentence: str
    bars: bool


def knows(control: Result, original: Result | None, holdout: Result | None) -> str:
    """Why a control must have seen the forget records, or nothing.

    Its plain recovery must not be above chance. Chance is what it says about holdout records, which it has
    not seen either; it is taken to know the data where Fisher's test finds the difference and it stands
    nearer to the original than to chance. Without enough holdout records for that, it must not stand half way
    to the original.

    Args:
        control: The plain prompt on the control model.
        original: The same on the original model.
        holdout: The control model asked about the holdout records.
    """
    found = control.recovered
    if holdout is not None and (original is None or _can_refuse(found.n, holdout.recovered.n)):
        top = original.recovered.value if original else found.value
        higher = chance(found, holdout.recovered) < SURE
        if higher and found.value > (top + holdout.recovered.value) / 2 - 1e-9:
            return (
                f"it gives {found.value:.0%} of the forget records to their own prompts, but "
                f"{holdout.recovered.value:.0%} of the holdout records"
            )
    elif original is not None and found.low > original.recovered.value / 2:
        return (
            f"it gives {found.value:.0%} of the forget records to their own prompts, the original model "
            f"{original.recovered.value:.0%}"
        )
    return ""


def doubt(control: Result, original: Result | None, holdout: Result | None) -> Doubt | None:
    """What remains to be said of a control that `knows` does not refuse; None: nothing.

    It may know a part of the data: Fisher's test finds it above chance. Holdout records show what chance is
    if there are enough of them to find this recovery, had they given nothing; else chance is taken for none.

    Args:
        control: The plain prompt on the control model.
        original: The same on the original model.
        holdout: The control model asked about the holdout records.
    """
    found = control.recovered
    able = holdout is not None and chance(found, _none_of(holdout.recovered.n)) < SURE
    guessed = holdout.recovered if holdout is not None and able else None
    if chance(found, guessed or _none_of(found.n)) < SURE:
        gives = f"The control gives {found.value:.0%} of the forget records to their own prompts"
        if guessed:
            why = f"but {guessed.value:.0%} of the holdout records: it may have seen some of them."
        else:
            few = "too few" if holdout else "no"
            why = (
                f"and there are {few} holdout records to tell whether by guessing. Give more with --holdout."
            )
        return Doubt(f"{gives}, {why}", bars=True)
    checkable = original is not None or (holdout is not None and _can_refuse(found.n, holdout.recovered.n))
    if checkable:
        return None
    lacking = "only few" if holdout else "no"
    return Doubt(
        "That the control never saw the forget records was not checked: there is no original model to check "
        f"it by, and there are {lacking} holdout records.",
        bars=False,
    )


def _can_refuse(records: int, holdout: int) -> bool:
    """Whether a control that gives all of the forget records would be found."""
    return chance(share([True] * records), _none_of(holdout)) < SURE


def _none_of(n: int) -> Metric:
    return share([False] * n)
