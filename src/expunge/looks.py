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
        last = next((found for found in reversed(before) if found.whole and found.lead is not None), None)
        remained = before[-1].remaining if before else []
        started = self.clock()
        found: Check = self.agree(check(step, remained=remained, last=last))
        if not (may_end and all_wanted(found, leaks_first=self.leaks_first)):
            return found
        needed = (self.clock() - started) * (found.of or 0) / (found.rows or 1)
        if not self.agree(needed <= self.spare()):
            return found.model_copy(update={"met": False})
        started = self.clock()
        found = self.agree(check(step, whole=True))
        self.seconds += self.clock() - started
        return found
