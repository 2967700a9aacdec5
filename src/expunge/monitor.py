"""The watch over a run: budget readings, step-size probes, forget checks, and the last good state.

Takes the measurements that `step_sizes` and `stopping` judge, at fixed optimizer steps, and keeps
what a resumed run must know. Knows the Trainer only as a source of events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from expunge import ranks
from expunge.alike import first_difference
from expunge.explosion import exploded, finite
from expunge.forget_check import ForgetCheck
from expunge.last_good import LastGood
from expunge.looks import Looks
from expunge.methods import Method
from expunge.observation import Batch
from expunge.own_code import difference
from expunge.phases import Phases
from expunge.probe import measure_line, rescale_step, row_losses, row_tokens
from expunge.record import Check, Probe, Step, Stop, write_atomically
from expunge.step_sizes import Proposal, standard_error, weighted_mean
from expunge.stopping import closing_in, forgotten
from expunge.weightings import Stateful, Weighting

STATE_FILE = "expunge_state.json"

FEW = 64
"""Rows drawn alone at most while every step is looked at: more take many steps, and a look at them long."""


class RunState(BaseModel):
    """What a run has measured and decided so far; saved with every checkpoint."""

    identity: dict[str, str] = {}
    code: dict[str, str] = {}
    start: list[float] = []
    repairing: bool = False
    over_budget: int = 0
    good_step: int | None = None
    steps: list[Step] = []
    probes: list[Probe] = []
    checks: list[Check] = []
    stop: Stop | None = None
    weighting: dict[str, float] = {}
    carried: dict[str, list[float]] = {}


class Monitor:
    """Measures, decides, and remembers.

    Args:
        model: The model in training, unwrapped.
        method: Brings the step-size rule and the retain budget.
        probe: Retain batches that budget and step-size rule read; the same rows all through the run.
        check: Looks at the forget records after so many steps; None where the method reads none.
        check_every: Optimizer steps between looks.
        identity: What decides the training, part by part; a checkpoint of another run is refused.
        gather: Concatenates a tensor of rows over ranks.
        agree: Gives every rank the first rank's value, so that all decide alike.
        code: Hashes of the user's own code in the method; a checkpoint of other code is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        probe: Sequence[Batch],
        check: ForgetCheck | None,
        check_every: int,
        identity: Mapping[str, str],
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
        agree: Callable[[Any], Any] = lambda value: value,
        code: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.method, self.probe = model, method, probe
        self.check, self.check_every = check, check_every
        self.gather, self.agree = gather, agree
        self.state = RunState(identity=dict(identity), code=dict(code or {}))
        self.looks = Looks(method.leaks_first, agree)
        self.good = LastGood()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.phases = Phases(method.merge, trained) if method.merge else None
        self._latest: tuple[int, Tensor] | None = None
        self._rows: Sequence[Batch] = probe
        self._zero = torch.zeros(0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def weighting(self) -> Weighting:
        """Of the training under way."""
        if self.phases is None:
            return self.method.weighting
        return (self.method.weighting, *self.phases.merge.further)[len(self.phases.changes)]

    @property
    def remaining(self) -> list[int]:
        """Forget rows that the next step is to draw from; none: from all."""
        checks = self.state.checks
        return checks[-1].remaining if self.method.leaks_first and checks else []

    def redrawn(self, step: int) -> bool:
        """Whether the look after so many steps changed what forget rows are drawn from."""
        checks = self.state.checks
        if not (self.method.leaks_first and checks and checks[-1].step == step):
            return False
        return checks[-1].remaining != (checks[-2].remaining if len(checks) > 1 else [])

    @property
    def _alone(self) -> bool:
        """Whether rows are drawn from few alone, or were until the last look: the others may slip back.

        Not once more looks have named the same rows than there are steps between looks: such rows do not give
        way, and a look at every step tells nothing new.
        """
        checks = self.state.checks
        if not (self.method.leaks_first and any(0 < len(check.remaining) <= FEW for check in checks[-2:])):
            return False
        recent = checks[-self.check_every - 1 :]
        return len(recent) <= self.check_every or any(c.remaining != recent[-1].remaining for c in recent)

    def begin(self) -> None:
        """Measure the start, unless a checkpoint brought it along; what is unknown already ends the run."""
        if isinstance(self.method.weighting, Stateful) and not self.state.steps:
            self.method.weighting.reset()
        rule = self.method.step_size
        if (self.method.budget or (rule and rule.rows)) and not self.state.steps:
            losses, anchored = self._measure(self.model), bool(self.state.start)
            self.state.start = self.state.start or losses.tolist()
            self._latest = (0, losses)
            if self.method.budget and not self.phases:
                self._keep(0)
            if self.method.budget and (self.phases or anchored):
                # a merge is read at its end alone; an anchored run may be over budget already
                self._read(0, 0.0)
        if self.check and self.check_every and not self.state.checks and self._note_look(0, may_end=True).met:
            reason = f"There was nothing to forget. {forgotten(self.state.checks[0])}"
            self.end(0, "forgotten", reason)

    def anchor(self, first: nn.Module) -> None:
        """Account the retain loss against another model's than that of the model at the start.

        Args:
            first: The model before an earlier run; it is measured on the probe, and not kept.
        """
        if self.probe and not self.state.steps:
            self.state.start = self._measure(first).tolist()

    def line_due(self, step: int, rate: float) -> bool:
        """Whether the step-size rule measures along the update of this step (counted from 0)."""
        rule = self.method.step_size
        return rule is not None and rate > 0 and not self.state.repairing and step % rule.every == 0

    def begin_line(self, step: int, retain: Sequence[Batch]) -> None:
        """Measure L(0), before the optimizer moves; reused where a budget reading just took it.

        Args:
            step: Optimizer steps taken.
            retain: The step's own retain batches, for rules that read these.
        """
        rule = self.method.step_size
        assert rule is not None
        self._rows = self.probe if rule.rows else retain
        known = rule.rows and self._latest is not None and self._latest[0] == step
        self._zero = self._latest[1] if known and self._latest else row_losses(self.model, self._rows)

    def search(self, step: int, rate: float, before: Sequence[Tensor]) -> float:
        """Measure along the update just made; rescale it if the rule says so. Returns η_new / η."""
        rule, rows = self.method.step_size, self._rows
        assert rule is not None
        line = measure_line(
            self.parameters, before, self._zero, lambda: row_losses(self.model, rows), row_tokens(rows)
        )
        if rule.rows:
            line = replace(line, start=torch.tensor(self.state.start, dtype=torch.float64))
        else:
            line = line.over_ranks(self.gather)
        proposal = Proposal(*self.agree(tuple(rule(rate, line))))
        factor = proposal.learning_rate / rate
        rescale_step(self.parameters, before, factor)
        self.state.probes.append(
            Probe(
                step=step,
                retain_loss=weighted_mean(line.zero, line.tokens),
                standard_error=standard_error(line.zero, line.tokens),
                slope=line.slope,
                slope_error=line.slope_error,
                curvature=line.curvature,
                learning_rate_before=rate,
                learning_rate_after=proposal.learning_rate,
                decision=proposal.decision,
            )
        )
        return factor

    def after_step(self, step: int, rate: float) -> Stop | None:
        """Readings and checks due after so many steps; a reason to stop, if there is one.

        Forgotten counts only within budget: a met check over budget is looked at again after the first
        reading that is back within it. Near the goal every step is looked at (`closing_in`), and while rows
        are drawn from a few alone, but for repair steps and rows that do not give way.
        """
        if self.state.stop or self.phases:
            return self.state.stop
        budget = self.method.budget
        reading = budget is not None and step % budget.every == 0
        if budget and reading:
            self._read(step, rate)
            if self.state.over_budget >= budget.patience:
                sentence = budget.exceeded(self.state.probes[-1].retain_loss, self.state.over_budget)
                return self.end(step, "retain-budget", sentence)
        if not (self.check and self.check_every):
            return None
        waiting = reading and self.state.checks[-1].met and self.state.checks[-1].step > 0
        alone = self._alone and not self.state.repairing
        near = closing_in(self.state.checks, self.check_every) or alone
        due = step % self.check_every == 0 or waiting or near
        if not (due and self._note_look(step, may_end=not self.state.over_budget).met):
            return None
        if budget and not reading:
            self._read(step, rate)
        if self.state.over_budget:
            return None
        if self.state.checks[-1].partial:  # taken while over budget
            self.state.checks.pop()
            if not self._note_look(step, may_end=True).met:
                return None
        return self.end(step, "forgotten", forgotten(self.state.checks[-1]))

    def diverged(self, step: int, sentence: str = "A loss, gradient or weight was not finite") -> None:
        """The run ends here, and the last good state returns, if there is any."""
        self.end(step, "diverged", f"{sentence} at step {step}.")

    def exploded(self, losses: Mapping[str, float]) -> str:
        """What is to be said of a step's losses that left all bounds; nothing where they did not."""
        first = self.state.steps[0].losses if self.state.steps else losses
        return exploded(self.method, self.model, losses, first)

    @property
    def astray(self) -> bool:
        """Whether the run diverged and no earlier state has been put back."""
        stop = self.state.stop
        return stop is not None and stop.reason == "diverged" and stop.restored_step is None

    def owns(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of this run."""
        state = _read_state(checkpoint)
        return (state.identity, state.code) == (self.state.identity, self.state.code)

    def returned(self, step: int | None, which: str) -> Stop:
        """Note that an earlier state has been put back.

        Args:
            step: Its optimizer steps.
            which: What it is.
        """
        assert self.state.stop is not None
        sentence = f"{self.state.stop.sentence} The state of step {step}, {which}, was restored."
        self.state.stop = self.state.stop.model_copy(update={"restored_step": step, "sentence": sentence})
        return self.state.stop

    def interrupted(self, step: int, *, resumable: bool) -> None:
        """The user asked to stop."""
        hint = " --resume continues." if resumable else ""
        self.end(step, "interrupted", f"Interrupted after step {step}.{hint}")

    def finish(self, step: int, rate: float, limit: int) -> Stop:
        """Merge, where the method says so; name the reason; return to the last good state where needed.

        Args:
            step: Optimizer steps taken.
            rate: η.
            limit: The step limit.
        """
        if self.state.stop is None and not self._finite():
            self.diverged(step)
        if self.phases and self.state.stop is None:
            self._merge(step, rate, self.phases)
        elif self.method.budget and self.state.stop is None and not self._read_at(step):
            self._read(step, rate)
        stop = self.state.stop or (
            self.end(step, "step-limit", f"The step limit of {limit} steps was reached.")
            if step >= limit
            else self.end(step, "callback", f"A callback ended the run after step {step}.")
        )
        if self.phases and self.phases.coefficient and stop.reason != "retain-budget":
            sentence = f"{stop.sentence} The model was merged at coefficient {self.phases.coefficient:g}."
            self.state.stop = stop = stop.model_copy(update={"sentence": sentence})
        lost = self.state.over_budget > 0 or stop.reason in ("diverged", "retain-budget")
        if stop.reason == "interrupted" and self.phases:
            self.phases.rewind()  # the checkpoint has the rest; what stands here may know forget by heart
        if stop.reason == "interrupted" or not lost or not (self.good or self.phases is not None):
            return stop
        good = self._restore()
        return self.returned(good, "the last within budget" if good and not self.phases else "the start")

    def _finite(self) -> bool:
        """Whether all weights are finite, on every rank."""
        return bool(self.gather(torch.tensor([float(finite(self.parameters))])).all())

    def _merge(self, step: int, rate: float, phases: Phases) -> None:
        """Put the merged model in place, at the first coefficient within budget, and look at it."""
        for coefficient in phases.merge.coefficients:
            phases.place(coefficient)
            if self.method.budget:
                self._read(step, rate, f"merged at {coefficient:g}: ")
            if not self.state.over_budget:
                break
        if self.method.budget and self.state.over_budget:
            tolerance, last = self.method.budget.tolerance, self.state.probes[-1]
            sentence = (
                f"At every coefficient the retain loss of the merged model stood more than {tolerance:g} "
                f"above its start; at {coefficient:g} it was {last.retain_loss:.3f}."
            )
            self.end(step, "retain-budget", sentence)
        elif self.check and self.check_every and self._note_look(step, may_end=True).met:
            self.end(step, "forgotten", forgotten(self.state.checks[-1]))

    def save(self, folder: Path) -> None:
        """Write state and last good parameters beside a checkpoint, each file whole or not at all.

        Of a sharded model every rank must call: each writes its share, the first one the rest.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.good.save(folder, sharded=ranks.sharded(self.model))
        if not ranks.first():
            return
        memory = self.method.weighting.state() if isinstance(self.method.weighting, Stateful) else {}
        state = self.state.model_copy(update={"stop": None, "weighting": memory})
        if self.phases:
            self.phases.save(folder)
        write_atomically(folder / STATE_FILE, state.model_dump_json())

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: The checkpoint is of another run.
        """
        state = _read_state(folder)
        if found := first_difference(state.identity, self.state.identity):
            what, before, now = found
            raise ValueError(
                f"`resume_from_checkpoint` must be a checkpoint of the same data, method and settings; "
                f"{what} was {before} in {folder} and is {now} now. Give the same, or begin anew."
            )
        if changed := difference(state.code, self.state.code):
            raise ValueError(
                "`resume_from_checkpoint` must be a checkpoint of a run of the same code; of your own, "
                f"{changed} ({folder}). Put it back, or start anew."
            )
        self.state = state
        if self.phases:
            self.phases.load(folder)
        if isinstance(self.method.weighting, Stateful) and state.steps:
            self.method.weighting.restore(state.weighting)
        self.good.load(folder, self.parameters, sharded=ranks.sharded(self.model))

    def _measure(self, model: nn.Module) -> Tensor:
        return torch.tensor(self.agree(row_losses(model, self.probe).tolist()), dtype=torch.float64)

    def look(self, step: int, *, may_end: bool) -> Check:
        """A look at the forget records, as the run stands; looks of later steps do not count.

        Args:
            step: Optimizer steps taken.
            may_end: Whether the run may end here, so that all records are asked.
        """
        assert self.check is not None
        before = [check for check in self.state.checks if check.step <= step]
        return self.looks.take(self.check, step, before, may_end=may_end)

    def _note_look(self, step: int, *, may_end: bool) -> Check:
        found = self.look(step, may_end=may_end)
        self.state.checks.append(found)
        return found

    def _read_at(self, step: int) -> bool:
        return any(probe.step == step and probe.slope is None for probe in self.state.probes[-2:])

    def _read(self, step: int, rate: float, what: str = "") -> None:
        budget = self.method.budget
        assert budget is not None
        losses, tokens = self._measure(self.model), row_tokens(self.probe)
        self._latest = (step, losses)
        change = losses - torch.tensor(self.state.start, dtype=torch.float64)
        over = not weighted_mean(change, tokens) <= budget.tolerance
        self.state.over_budget = self.state.over_budget + 1 if over else 0
        self.state.repairing = over and budget.repair
        verdict = "repair: over budget" if self.state.repairing else "over budget"
        self.state.probes.append(
            Probe(
                step=step,
                retain_loss=weighted_mean(losses, tokens),
                standard_error=standard_error(change, tokens),
                learning_rate_before=rate,
                learning_rate_after=rate,
                decision=what + (verdict if over else "within budget"),
            )
        )
        if not over and self.phases is None:
            self._keep(step)

    def _keep(self, step: int) -> None:
        self.state.good_step = step
        self.good.keep(self.parameters)

    def _restore(self) -> int | None:
        """Put the last state within budget back: the start of the run, where nothing was read in between."""
        if self.phases:
            self.phases.rewind()
            return 0
        self.good.put_back(self.parameters)
        return self.state.good_step

    def end(self, step: int, reason: Any, sentence: str) -> Stop:
        """Name the end of the run; the first reason stands."""
        self.state.stop = self.state.stop or Stop(reason=reason, sentence=sentence, step=step)
        return self.state.stop


def _read_state(folder: Path) -> RunState:
    return RunState.model_validate_json((folder / STATE_FILE).read_text(encoding="utf-8"))
