"""A run against the clock: it ends in time, and the best state so far is always on disk."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from expunge.record import Check
from expunge.unlearner import Unlearner

logger = logging.getLogger(__name__)

Rank = tuple[bool, bool, bool, float]


def rank(check: Check | None, within_budget: bool, step: int) -> Rank:
    """How good a state is, to be compared with others of the same run.

    First that the retain loss is within budget; then that the forget records count as forgotten; then how far
    they are on the way: the mean of how near their NLL has come to the control's and, where pairs are
    compared, of how near the preference for true responses has come to indifference, or else their leak to
    the control's. More forgetting than the control's is no better. Before that comes whether the look knew of
    all records: what some say before all have been looked at may be too good.

    Args:
        check: The look at the forget records; None where the run takes none, and a later state is better.
        within_budget: Of the retain loss; true where there is no budget.
        step: Optimizer steps taken.
    """
    if check is None:
        return within_budget, False, True, float(step)
    if not math.isfinite(check.forget_nll):
        return False, False, False, -math.inf
    ways = [min(1.0, check.forget_nll / check.control_nll) if check.control_nll > 0 else 1.0]
    if check.preference is not None:
        ways.append(min(1.0, 2 * (1 - check.preference)))
    elif check.control_leak is not None:
        ways.append(1 - max(0.0, check.forget_leak - check.control_leak))
    known = not check.partial or check.lead is not None
    return within_budget, check.met and not check.partial, known, sum(ways) / len(ways)


class Deadline(TrainerCallback):
    """Ends a run in time, and has every better state written as soon as it is known.

    Time is kept back for what is still to be done: perhaps one more step, a last look at the records, and
    writing after both. Of several processes the first writes and its clock counts.

    Args:
        unlearner: The run; this callback is to be added to it last.
        write: Writes the model's present state.
        end: When all must be done, on `clock`.
        writing: Seconds that writing the first state took.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        unlearner: Unlearner,
        write: Callable[[], None],
        end: float,
        writing: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unlearner, self.write, self.end, self.clock = unlearner, write, end, clock
        self.best: Rank | None = None
        self.writing, self.longest = writing, 0.0
        self._begun, self._looked = clock(), 0.0
        unlearner.monitor.looks.spare = lambda: self.end - self.clock() - self.reserve

    @property
    def reserve(self) -> float:
        """Seconds to keep back: twice the longest step, usual looks included, and twice the longest writing.

        A look at all records is taken where there is time for it beside these; one that names rows, which the
        next looks read, too, counts as part of its step.
        """
        return 2 * self.longest + 2 * self.writing

    def offer(self, step: int, found: Rank) -> bool:
        """Write the present state if it is better than the one on disk.

        Args:
            step: Optimizer steps taken.
            found: Its rank.

        Returns:
            Whether it was.
        """
        if self.best is None:
            checks = self.unlearner.monitor.state.checks
            self.best = rank(checks[0] if checks else None, True, 0)  # the untouched model is on disk
        if found <= self.best:
            return False
        started = self.clock()
        if self.unlearner.args.should_save:
            self.write()
            logger.info("The state of step %d is the best so far; it is on disk.", step)
        self.writing = max(self.writing, self.clock() - started)
        self.best = found
        return True

    def finish(self) -> bool:
        """After training: look once more, and keep the final state if it is the best.

        Returns:
            Whether it was.
        """
        monitor, stop = self.unlearner.monitor, self.unlearner.stop
        restored = stop.restored_step if stop is not None else None
        if stop is not None and stop.reason == "diverged" and restored is None:
            return False
        step = self.unlearner.state.global_step if restored is None else restored
        look = next((check for check in reversed(monitor.state.checks) if check.step == step), None)
        if look is None and monitor.check is not None:
            look = monitor.look(step, may_end=restored is not None or not monitor.state.over_budget)
        return self.offer(step, rank(look, restored is not None or not monitor.state.over_budget, step))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stop_if_due(state.global_step, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun, self._looked = self.clock(), self.unlearner.monitor.looks.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, monitor = state.global_step, self.unlearner.monitor
        checks = monitor.state.checks
        named = bool(checks and checks[-1].remaining)  # the next look reads these, and takes as long at most
        at_all = 0.0 if named else monitor.looks.seconds - self._looked
        self.longest = max(self.longest, self.clock() - self._begun - at_all)
        every = self.unlearner.args.check_every
        due = bool(every) and step % every == 0
        looked = monitor.state.checks and monitor.state.checks[-1].step == step
        if looked and not due:  # near the goal every step is looked at
            last = monitor.state.checks[-1]
            looked = last.met or bool(last.remaining)
        if self.unlearner.stop is None and (looked or (due and monitor.check is None)):
            check = monitor.state.checks[-1] if looked else None
            self.offer(step, rank(check, not monitor.state.over_budget, step))
        self._stop_if_due(step, control)

    def _stop_if_due(self, step: int, control: Any) -> None:
        monitor = self.unlearner.monitor
        if monitor.agree(self.clock() + self.reserve >= self.end):
            monitor.end(step, "callback", f"The time limit ended the run after step {step}.")
            control.should_training_stop = True
            control.should_save = False
