"""Attacks, one after another, on every column of an audit: in their time, kept when finished, never fatal."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import nn
from transformers import set_seed

from expunge import intervals
from expunge.attacks import (
    Attack,
    Clock,
    Cost,
    Findings,
    Probes,
    Setting,
    Target,
    configuration,
)
from expunge.attacks.attack import borrows
from expunge.audit_record import AttackEntry, Column, CostEntry, Point, Result
from expunge.auditing.judgement import judge, share
from expunge.auditing.store import Store, key_of, marks, redacted
from expunge.defences.defended import Defended
from expunge.errors import UsageError
from expunge.inference import Precision
from expunge.progress import Reporter, Silent
from expunge.weights import weights_hash

logger = logging.getLogger(__name__)

Found = dict[Column, Findings]


@dataclass(frozen=True)
class Case:
    """One column: a model, and what it is asked about.

    Attributes:
        column: Its name on the page.
        target: The model.
        probes: Its records.
        weights: Hash of the model's weights, which every attack must leave as they are.
    """

    column: Column
    target: Target
    probes: Probes
    weights: str


@dataclass(frozen=True)
class Session:
    """What all attacks of an audit share.

    Attributes:
        store: Where findings are kept.
        seed: Of every random choice.
        precision: Of forward passes.
        seconds: Per attack and column.
        original: The model before unlearning, with its weights' hash.
        reporter: Is told of every attack before it starts, with its cost.
    """

    store: Store
    seed: int = 0
    precision: Precision = "fp32"
    seconds: float = math.inf
    original: tuple[Target, str] | None = None
    reporter: Reporter = field(default_factory=Silent)

    def setting(self) -> Setting:
        """With a clock that starts now."""
        original = self.original[0] if self.original else None
        return Setting(self.seed, self.precision, Clock(self.seconds), original)


def attack_all(attack: Attack, cases: Sequence[Case], session: Session) -> tuple[AttackEntry, Found]:
    """One attack on every column; what it cannot do is said, and no defect of it ends the audit.

    Raises:
        UsageError: It left a model changed: no later number would be worth anything.
    """
    entry = AttackEntry(
        name=attack.name,
        family=attack.family,
        line=attack.line,
        configuration=configuration(attack),
        status="done",
    )
    found: Found = {}
    results: dict[Column, Result] = {}
    for case in cases:
        try:
            entry = entry.model_copy(update={"cost": CostEntry(**asdict(attack.cost(cases[0].probes)))})
            if why := attack.obstacle(case.probes, session.setting()):
                raise _SkippedError(why)
            findings, seconds = _attack(attack, case, session)
        except _ChangedError as error:
            raise UsageError(str(error)) from None
        except Exception as error:
            entry = _stumbled(entry, case, error, session.store.secrets)
            if case.column == "unlearned":
                return entry, {}
            continue
        found[case.column], results[case.column] = findings, result(findings, seconds, session.seed)
    return entry.model_copy(
        update={"results": results, "judgement": judge(results, attack.family, borrows=borrows(attack))}
    ), found


class _SkippedError(Exception):
    """An attack says that it cannot run."""


class _ChangedError(Exception):
    """An attack left a model changed."""


def _stumbled(entry: AttackEntry, case: Case, error: Exception, secrets: Sequence[str]) -> AttackEntry:
    """Why an attack gave nothing in a column; without the unlearned model's there is nothing to judge."""
    skipped = isinstance(error, _SkippedError | UsageError | ImportError)
    line = redacted(" ".join(str(error).split()), secrets)[:400]
    why = line if skipped else f"It failed with {type(error).__name__}: {line}"
    if isinstance(error, ImportError):
        why = f"A library is missing: {line}. Install it to run this attack."
    if not skipped:
        logger.debug("attack %s failed on %s", entry.name, case.column, exc_info=error)
    if case.column == "unlearned":
        return entry.model_copy(update={"status": "skipped" if skipped else "failed", "why": why})
    others = f"{entry.why} " if entry.why else ""
    return entry.model_copy(update={"why": f"{others}Not on {case.column}: {why}"})


def _attack(attack: Attack, case: Case, session: Session) -> tuple[Findings, float]:
    """Findings, recalled or fresh, and the seconds that they took."""
    original = session.original[1] if session.original else ""
    device = next(case.target.model.parameters()).device.type
    key = key_of(
        attack,
        case.probes,
        case.target.tokenizer,
        (case.weights, original),
        (session.seed, session.precision, device),
        marks(case.target.model),
    )
    if kept := session.store.recall(attack.name, case.column, key):
        return kept.findings, kept.seconds
    title = f"{attack.name} on {case.column} ({announced(attack.cost(case.probes), session.seconds)})"
    started, asked = time.perf_counter(), _asked(case)
    with session.reporter.phase(title, 1) as advance, _seeded(session.seed):
        try:
            findings = attack.run(case.target, case.probes, session.setting())
        except Exception:
            _unchanged(attack, case)
            raise
        advance(1, "")
    seconds = time.perf_counter() - started
    _unchanged(attack, case)
    findings = checked(attack.name, findings, len(case.probes.forget))
    tried = any(found.tries for found in findings.recoveries)
    if tried and isinstance(case.target.model, Defended) and _asked(case) == asked:
        findings = replace(findings, past_filters=True)
    kept = session.store.keep(attack.name, case.column, key, findings, seconds)
    return kept.findings, seconds


def _asked(case: Case) -> int:
    """Answers that have passed the model's filters so far."""
    model: nn.Module = case.target.model
    return model.asked if isinstance(model, Defended) else 0


def _unchanged(attack: Attack, case: Case) -> None:
    """The model is as it was before the attack, also after an error.

    Raises:
        _ChangedError: Its weights are others.
    """
    case.target.model.eval()
    if weights_hash(case.target.model) != case.weights:
        raise _ChangedError(
            f"attack {attack.name} must leave the model as it was; the {case.column} model has other weights "
            "now. Let it change a copy, or leave it out."
        )


def announce(attacks: Sequence[Attack], cases: Sequence[Case], session: Session) -> None:
    """Say what the whole audit costs, before it starts."""
    costs = [_cost(attack, case, session) for attack in attacks for case in cases]
    able = [cost for cost in costs if cost is not None]
    whole = Cost(
        sum(cost.forward_tokens for cost in able),
        sum(cost.backward_tokens for cost in able),
        sum(cost.generated_tokens for cost in able),
    )
    columns = ", ".join(case.column for case in cases)
    title = f"{len(attacks)} attacks on {columns}: {announced(whole, len(able) * session.seconds)}"
    with session.reporter.phase(title, 1) as advance:
        advance(1, "")


def _cost(attack: Attack, case: Case, session: Session) -> Cost | None:
    """None for an attack that will not run; why is said when its turn comes."""
    try:
        return None if attack.obstacle(case.probes, session.setting()) else attack.cost(case.probes)
    except Exception:
        return None


def announced(cost: Cost, seconds: float) -> str:
    """What an attack costs, in few words, before it starts.

    Example:
        >>> announced(Cost(forward_tokens=95, generated_tokens=234_900), 60.0)
        'tokens: 95 read, 235k written; at most 60 s'
    """
    parts = {"read": cost.forward_tokens, "differentiated": cost.backward_tokens}
    parts["written"] = cost.generated_tokens
    words = [f"{_compact(count)} {what}" for what, count in parts.items() if count]
    bound = f"; at most {seconds:g} s" if math.isfinite(seconds) else ""
    return f"tokens: {', '.join(words) or 'none'}{bound}"


def _compact(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def checked(name: str, findings: Findings, records: int) -> Findings:
    """Findings in plain types; what cannot be counted is refused, for a user's own attack may give anything.

    Raises:
        ValueError: Says which rule they break.
    """
    if len(findings.recoveries) != records:
        raise ValueError(
            f"`recoveries` must hold one per record ({records}); attack {name} gave "
            f"{len(findings.recoveries)}."
        )
    wrong = [found.score for found in findings.recoveries if not 0 <= found.score <= 1]
    if wrong:
        raise ValueError(f"`score` must be in [0, 1]; attack {name} gave {wrong[0]}.")
    short = [budget for budget, flags in findings.curve.items() if len(flags) != records]
    if short:
        raise ValueError(f"`curve` must hold one flag per record ({records}); at {short[0]} it does not.")
    plain = [
        replace(found, score=float(found.score), recovered=bool(found.recovered))
        for found in findings.recoveries
    ]
    curve = {float(budget): [bool(flag) for flag in flags] for budget, flags in findings.curve.items()}
    return replace(findings, recoveries=plain, curve=curve)


def result(findings: Findings, seconds: float, seed: int) -> Result:
    """Findings as numbers with intervals."""
    recoveries = findings.recoveries
    return Result(
        recovered=share([found.recovered for found in recoveries]),
        score=intervals.share([found.score for found in recoveries], seed=seed),
        curve=[Point(budget=b, recovered=share(flags)) for b, flags in sorted(findings.curve.items())],
        axis=findings.axis,
        values=dict(findings.values),
        notes=list(findings.notes),
        complete=findings.complete,
        past_filters=findings.past_filters,
        tries=sum(found.tries for found in recoveries),
        seconds=round(seconds, 3),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every random generator at the seed, so that no attack depends on those before it; all put back."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
