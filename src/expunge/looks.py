"""Looks at the forget records as a run goes on: at some, and at all where these say that it may end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from expunge.forget_check import ForgetCheck
from expunge.record import Check
from expunge.stopping import all_wanted


class Looks:
    """Takes looks, and counts the time of those at all records.

    Args:
        leaks_first: As of the method.
        agree: Gives every rank the first rank's value, so that all look alike.
        clock: Tells the time, in seconds.

    Attributes:
        seconds: That looks at all records, where most read some, took so far.
        spare: Seconds that such a look may take.
    """

    def __init__(
        self,
        leaks_first: bool,
        agree: Callable[[Any], Any] = lambda value: value,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leaks_first, self.agree, self.clock = leaks_first, agree, clock
        self.seconds = 0.0
        self.spare: Callable[[], float] = lambda: math.inf

    def take(self, check: ForgetCheck, step: int, before: Sequence[Check], *, may_end: bool) -> Check:
        """A look at some records, and at all where these say that the run may end, or that leaks remain.

        Where time does not allow the second the first is not met: it did not see the others.

        Args:
            check: Looks.
            step: Optimizer steps taken.
            before: Earlier looks.
            may_end: Whether the run may end here; otherwise what some say is not asked of all.
        """
        last, remained = _known(before)
        started = self.clock()
        found: Check = self.agree(check(step, remained=remained, last=last))
        if not all_wanted(found, leaks_first=self.leaks_first, may_end=may_end):
            return found
        needed = (self.clock() - started) * (found.of or 0) / (found.rows or 1)
        if not self.agree(needed <= self.spare()):
            return found.model_copy(update={"met": False})
        started = self.clock()
        found = self.agree(check(step, whole=True))
        self.seconds += self.clock() - started
        return found


def _known(before: Sequence[Check]) -> tuple[Check | None, list[int]]:
    """The last look at all, and the rows that were named last, by it or since.

    Where all slip below the control for a step, the rows that were reproduced are not forgotten.
    """
    remained: list[int] = []
    for check in reversed(before):
        remained = remained or check.remaining
        if check.whole and check.lead is not None:
            return check, remained
    return None, remained
