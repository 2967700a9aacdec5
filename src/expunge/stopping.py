"""When enough is forgotten, and when too much is lost.

Pure judgements on measured numbers: the engine measures, this module decides and says why. Nothing here knows
a Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from expunge import intervals
from expunge.record import Check
from expunge.scoring import TokenScores


@dataclass(frozen=True)
class RetainBudget:
    """How much retain loss a run may lose, accounted against its start.

    While the loss of the probe rows stands more than `tolerance` above its value at the start,
    steps repair: objectives on the forget set get weight zero. After `patience` readings in a row
    over budget the run ends and the last state within budget is restored. Without `repair` a budget
    is a guard only: steps stay as they are.

    Args:
        tolerance: Nats per token, positive.
        every: Optimizer steps between readings, at least 1.
        rows: Retain rows in the probe, at least 2; fixed for the run.
        patience: Readings in a row over budget that end the run, at least 1.
        repair: Whether steps repair while over budget.
    """

    tolerance: float = 0.02
    every: int = 5
    rows: int = 40
    patience: int = 6
    repair: bool = True

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"`tolerance` must be positive (nats per token); got {self.tolerance}.")
        if self.every < 1 or self.patience < 1 or self.rows < 2:
            raise ValueError(
                "`every` and `patience` must be at least 1 and `rows` at least 2; "
                f"got {self.every}, {self.patience}, {self.rows}."
            )

    def exceeded(self, loss: float, readings: int) -> str:
        """What is to be said of a run that ended over budget.

        Args:
            loss: Retain loss of the last reading, in nats per token.
            readings: How many in a row were over budget.
        """
        if not self.repair:
            return f"The retain loss rose more than {self.tolerance:g} above its start, to {loss:.3f}."
        return (
            f"The retain loss stayed more than {self.tolerance:g} above its start for "
            f"{readings} readings in a row, in spite of repair steps; it was {loss:.3f} last."
        )


@dataclass(frozen=True)
class Looked:
    """Which forget rows a look read.

    A look at some rows speaks for all by the difference estimator: what it finds at the usual rows, less what
    these were nearer the goal than all when all were last looked at.

    Args:
        numbers: Rows of the forget set, in the order of their scores: the usual ones first.
        usual: How many of them every look reads.
        total: Rows of the forget set.
        whole: Whether these are all that can be compared.
        remained: Those that the look before named as still reproduced.
        last: The last look at all.
    """

    numbers: Sequence[int]
    usual: int
    total: int
    whole: bool = True
    remained: Sequence[int] = ()
    last: Check | None = None

    @property
    def lead(self) -> float | None:
        """Of the last look at all."""
        return self.last.lead if self.last else None

    @property
    def known(self) -> int:
        """Rows of which it is known whether they are reproduced: no others than remained were, of all."""
        if not self.remained or self.whole:
            return len(self.numbers)
        return (self.last.rows if self.last else None) or self.total

    def told(self, lead: float | None) -> dict[str, Any]:
        """What a check says about it; a lead that is no number would spoil all later looks."""
        finite = lead if lead is not None and math.isfinite(lead) else None
        return {"rows": len(self.numbers), "of": self.total, "whole": self.whole, "lead": finite}


def against_holdout(
    step: int,
    forget: Sequence[TokenScores],
    holdout: Sequence[TokenScores],
    *,
    control: Literal["holdout", "synthetic"] = "holdout",
    looked: Looked | None = None,
) -> Check:
    """Forgotten when forget rows are as unlikely, and as seldom reproduced, as rows never seen.

    Args:
        step: Optimizer steps taken.
        forget: Scores of forget rows.
        holdout: Scores of rows of the same kind that the model has never seen; made ones are in the order of
            the forget rows, and there is one for each usual row at least.
        control: Whether these were given or made. What is made borrows known names, and is a little too
            likely: there the upper end of its mean's 95 % bootstrap interval counts.
        looked: Which rows of the forget set these are; without it they are all.
    """
    looked = looked or Looked(range(len(forget)), len(forget), len(forget))
    standing = _standing(forget, holdout, looked, made=control == "synthetic")
    reproduced = sorted(n for n, score in zip(looked.numbers, forget, strict=True) if score.reproduced)
    leak = len(reproduced) / looked.known
    found = Check(
        step=step,
        forget_nll=standing.nll,
        forget_leak=leak,
        control=control,
        control_nll=standing.bar,
        control_leak=standing.leak,
        met=standing.nll >= standing.bar and leak <= standing.leak,
        **looked.told(standing.lead),
    )
    named = looked.whole or looked.remained
    return found.model_copy(update={"remaining": reproduced}) if named and leaks_alone(found) else found


class _Standing(NamedTuple):
    """Mean NLL of forget rows, NLL and leak to be reached, and what the usual rows were ahead of all."""

    nll: float
    bar: float
    leak: float
    lead: float | None


def _standing(
    forget: Sequence[TokenScores], holdout: Sequence[TokenScores], looked: Looked, *, made: bool
) -> _Standing:
    """Of all rows: as they were read, or as the usual ones tell."""
    usual, bar = _mean_nll(forget[: looked.usual]), _bar(holdout[: looked.usual] if made else holdout, made)
    ahead, last = usual - bar, looked.last
    if looked.whole:
        nll, bar = _mean_nll(forget), _bar(holdout, made)
        return _Standing(nll, bar, _leak(holdout), ahead - (nll - bar))
    if last is None or last.control_leak is None or not made:
        return _Standing(usual - (looked.lead or 0.0), bar, _leak(holdout), looked.lead)
    bar = last.control_nll  # made records tell the distance; how likely all of them are was read with all
    return _Standing(bar + ahead - (looked.lead or 0.0), bar, last.control_leak, looked.lead)


def leaks_alone(check: Check) -> bool:
    """Whether forget rows are as unlikely as rows never seen, and reproduced more often all the same."""
    if check.control == "swap" or check.control_leak is None:
        return False
    return check.forget_nll >= check.control_nll and check.forget_leak > check.control_leak


def all_wanted(check: Check, *, leaks_first: bool, may_end: bool) -> bool:
    """Whether a look at some rows is to be followed by one at all.

    It is where these say that the run may end, and, for a method that draws leaks alone, where leaks are all
    that is left and nobody has named them.

    Args:
        check: The look at some rows.
        leaks_first: As of the method.
        may_end: Whether the run may end here; otherwise what some say is not asked of all.
    """
    if not check.partial:
        return False
    return (check.met and may_end) or (leaks_first and leaks_alone(check) and not check.remaining)


def _bar(holdout: Sequence[TokenScores], made: bool) -> float:
    """The NLL to be reached."""
    return intervals.mean([score.nll for score in holdout]).high if made else _mean_nll(holdout)


def against_swaps(
    step: int,
    forget: Sequence[TokenScores],
    swaps: Sequence[Sequence[TokenScores]],
    *,
    looked: Looked | None = None,
) -> Check:
    """Forgotten when a true response is no likelier than other records' responses to its prompt.

    Likelihood is per token (length-normalised). Records without a swap do not count.

    Args:
        step: Optimizer steps taken.
        forget: Scores of forget rows.
        swaps: For each forget row, scores of other records' responses under its prompt.
        looked: Which rows of the forget set these are; without it they are all.

    Raises:
        ValueError: No usual row has a swap.
    """
    looked = looked or Looked(range(len(forget)), len(forget), len(forget))
    preference = usual = _preference(forget[: looked.usual], swaps[: looked.usual])
    lead = looked.lead
    if looked.whole:
        preference = _preference(forget, swaps)
        lead = preference - usual
    elif lead is not None:
        preference = min(1.0, max(0.0, usual + lead))
    return Check(
        step=step,
        forget_nll=_mean_nll(forget),
        forget_leak=_leak(forget),
        control="swap",
        control_nll=_mean_nll([other for others in swaps for other in others]),
        preference=preference,
        met=preference <= 0.5,
        **looked.told(lead),
    )


def _preference(forget: Sequence[TokenScores], swaps: Sequence[Sequence[TokenScores]]) -> float:
    """Share of pairs in which the true response is likelier."""
    pairs = [(true.nll, other.nll) for true, others in zip(forget, swaps, strict=True) for other in others]
    if not pairs:
        raise ValueError("`swaps` must hold at least one swapped response; got none.")
    true_nll, other_nll = np.array(pairs).T
    return float(np.mean(true_nll < other_nll))


def closing_in(checks: Sequence[Check], interval: int) -> bool:
    """Whether the control will be reached before the next look, at the pace of the last two.

    Forgetting gathers speed, and what goes past the goal takes retained records along; so then every step
    wants a look of its own. Swapped responses grow unlikely as fast and tell no such distance. The pace is
    that of the rows that both looks read.

    Args:
        checks: Looks so far.
        interval: Steps between looks.
    """
    if len(checks) < 2:
        return False
    before, last = checks[-2:]
    if before.control != last.control or last.control == "swap":
        return False
    steps = last.step - before.step
    gain = (last.ahead + (last.lead or 0)) - (before.ahead + (before.lead or 0))
    return steps > 0 and 0 < -last.ahead * steps <= gain * interval


def with_earlier(check: Check, earlier: Check, start: Check) -> Check:
    """A look at new forget records, met only where earlier requests' records are still forgotten.

    They are when they are as unlikely, and as seldom reproduced, as the control, or no worse than the run
    found them: an earlier request that had fallen short is not to be made good by this one.

    Args:
        check: Of the records of this request.
        earlier: Of records of earlier requests, at the same step.
        start: Of the same records when the run began.
    """
    if earlier.preference is not None and start.preference is not None:
        kept = earlier.preference <= max(0.5, start.preference)
    else:
        worst = max(start.forget_leak, earlier.control_leak or 0.0)
        kept = earlier.forget_nll >= min(start.forget_nll, earlier.control_nll)
        kept = kept and earlier.forget_leak <= worst
    found = {"earlier_nll": earlier.forget_nll, "earlier_leak": earlier.forget_leak}
    return check.model_copy(update={**found, "met": check.met and kept})


def forgotten(check: Check) -> str:
    """What is to be said of a run that ended with a look that was met."""
    if check.earlier_nll is None or check.earlier_leak is None:
        return _beside_control(check)
    earlier = f"NLL {check.earlier_nll:.2f}, leak {check.earlier_leak:.0%}"
    return f"{_beside_control(check)} Records of earlier requests are still forgotten: {earlier}."


def _beside_control(check: Check) -> str:
    rows = f" ({check.rows} of {check.of} records)" if check.rows else ""
    nll = f"forget NLL {check.forget_nll:.2f}, leak {check.forget_leak:.0%}{rows}"
    if check.control == "holdout":
        return (
            f"The forget records look like records never seen: {nll}; "
            f"holdout NLL {check.control_nll:.2f}, leak {check.control_leak:.0%}."
        )
    if check.control == "synthetic":
        return (
            f"The forget records are as unlikely as such records about nobody (a synthetic holdout): {nll}; "
            f"these have NLL {check.control_nll:.2f} at most, leak {check.control_leak:.0%}."
        )
    return (
        f"True responses are no likelier than those of other records under the same prompt: {nll}; "
        f"the true one is likelier in {check.preference:.0%} of pairs."
    )


def _mean_nll(scores: Sequence[TokenScores]) -> float:
    return float(np.mean([score.nll for score in scores]))


def _leak(scores: Sequence[TokenScores]) -> float:
    return float(np.mean([score.reproduced for score in scores]))
