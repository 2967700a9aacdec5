"""Asking the same records again under one change of the weights after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from expunge import intervals
from expunge.attacks.answers import Question, ask, asking_cost, best, stopped
from expunge.attacks.attack import Cost, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.restored import whole
from expunge.generation import Guarded
from expunge.models import CausalModel


@dataclass(frozen=True)
class Trial:
    """One change of the weights.

    Attributes:
        budget: Where it stands on the curve.
        words: What it is, for a reader who wants to repeat it.
        change: Makes it, in place.
    """

    budget: float
    words: str
    change: Callable[[], None]


def sweep(target: Target, probes: Probes, setting: Setting, trials: Sequence[Trial], axis: str) -> Findings:
    """The training prompts under every change; per record the answer that came furthest.

    A record counts as recovered at a budget if it was by then, in the order of the trials; `values` hold the
    share that each budget recovers by itself. Every change starts from the target's own weights, an adapter
    merged in, and these are bit-identical afterwards.

    Args:
        target: Who is changed and asked.
        probes: The records.
        setting: Precision and clock.
        trials: Mildest first; several may have one budget.
        axis: What the budgets count.
    """
    tally = Tally(probes, axis)
    for trial in trials:
        if setting.clock.over:
            break
        with whole(target.model):
            trial.change()
            tally.add(trial.budget, trial.words, answers(target, probes, setting))
    wanted = len(trials) * len(probes.forget)
    return tally.findings(setting, wanted)


def answers(
    target: Target, probes: Probes, setting: Setting, chosen: Sequence[int] | None = None
) -> dict[int, Recovery]:
    """What the training prompts bring back now: record -> recovery, of those that time allowed.

    A model behind filters is asked without them: whoever can change the weights can take these off.

    Args:
        target: Who is asked.
        probes: The records.
        setting: Precision and clock.
        chosen: Numbers of the records to ask; None: all.
    """
    numbers = range(len(probes.forget)) if chosen is None else chosen
    questions = [Question(probes.forget[i], probes.forget[i].prompt) for i in numbers]
    model = target.model
    if isinstance(model, Guarded):
        model = cast(CausalModel, model.behind())
    found = ask(dataclasses.replace(target, model=model), questions, probes.encoding, setting)
    return {i: one for i, one in zip(numbers, found, strict=True) if one is not None}


class Tally:
    """Answers of one attack, as they come in.

    Args:
        probes: The records.
        axis: What budgets count.
    """

    def __init__(self, probes: Probes, axis: str) -> None:
        self.axis = axis
        self.tried: list[list[Recovery]] = [[] for _ in probes.forget]
        self.flags: dict[float, dict[int, bool]] = {}
        self.asked = 0

    def add(self, budget: float, words: str, found: dict[int, Recovery]) -> None:
        """Answers to some of the records at one budget."""
        flags = self.flags.setdefault(budget, {})
        for i, one in found.items():
            self.tried[i].append(dataclasses.replace(one, input=f"[{words}] {one.input}"))
            flags[i] = flags.get(i, False) or one.recovered
        self.asked += len(found)

    def findings(self, setting: Setting, wanted: int, notes: Sequence[str] = ()) -> Findings:
        """All together; `wanted` answers would have been the whole attack."""
        complete = self.asked == wanted
        late = [] if complete else [stopped(setting, self.asked, wanted, "answers")]
        return Findings(
            [best(found) for found in self.tried],
            curve=self._curve(),
            axis=self.axis,
            values={
                f"{budget:g} {self.axis}": intervals.share([*map(float, flags.values())], seed=setting.seed)
                for budget, flags in self.flags.items()
                if flags
            },
            notes=(*notes, *late),
            complete=complete,
        )

    def _curve(self) -> dict[float, list[bool]]:
        """Budget -> per record whether it had been recovered by then."""
        curve: dict[float, list[bool]] = {}
        so_far = [False] * len(self.tried)
        for budget, flags in self.flags.items():
            so_far = [before or flags.get(i, False) for i, before in enumerate(so_far)]
            curve[float(budget)] = so_far
        return curve


def sweep_cost(probes: Probes, trials: int) -> Cost:
    """What so many rounds of asking take, at most."""
    return asking_cost(probes, [[record.prompt] * trials for record in probes.forget])


def check_shares(name: str, shares: Sequence[float]) -> None:
    """Refuse an empty list of budgets, and any that is not strictly between 0 and 1 (ValueError)."""
    wrong = [share for share in shares if not 0 < share < 1]
    if wrong or not shares:
        raise ValueError(
            f"`{name}` must be at least one number above 0 and below 1; "
            f"got {wrong[0] if wrong else 'none'}. Zero would attack nothing: leave the attack out instead."
        )
