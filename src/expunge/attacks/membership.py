"""Membership: does a forget record still look like one that was trained on, beside records never seen?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from expunge import intervals, membership
from expunge.attacks.answers import UNREACHED, stopped, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.collate import Encoding
from expunge.default_model import DEFAULT_MODEL
from expunge.errors import UsageError
from expunge.gradients import gradient_norms
from expunge.inference import model_context
from expunge.models import configured_context, load_model, load_tokenizer
from expunge.records import Record
from expunge.scoring import TokenScores, score

Score = Literal["loss", "zlib", "reference", "gradient_norm", "min_k", "min_k_plus_plus"]
"""The six of `expunge.membership`."""

Found = Mapping[int, Sequence[float]]
"""Record, forget before holdout -> its scores; those that time reached."""

_PORTION: Final = 32
"""Records between two looks at the clock."""


@dataclass(frozen=True)
class Membership:
    """One membership attack: a record is recovered where it looks more familiar than the holdout records do.

    A record is flagged where at most a share `rate` of the holdout records looks as familiar. About that
    share of records that a model never saw is flagged too: a model without a trace shows no more. A
    recovery's score is the share of holdout records that look less familiar. `values` hold the area under the
    ROC curve (0.5: nothing to tell apart; far below: the trace that unlearning itself leaves) with its
    bootstrap interval, and the share of records flagged.

    Args:
        score: Which of the six.
        rate: False positives, in (0, 1).
        reference_model: For the score "reference": a model that never saw the records, as `--model` names
            one; its tokenizer may be another.

    Reference:
        See `expunge.membership`; true positives at a fixed low rate of false ones: Carlini et al. (2022),
        arXiv 2112.03570.
    """

    score: Score = "loss"
    rate: float = 0.05
    reference_model: str = DEFAULT_MODEL
    family: ClassVar[Family] = "membership"

    def __post_init__(self) -> None:
        _check(self.rate, (self.score,))

    @property
    def name(self) -> str:
        return f"membership-{self.score.replace('_', '-')}"

    @property
    def line(self) -> str:
        return f"{membership.ATTACKS[self.score]} Flagged beyond {1 - self.rate:.0%} of the holdout."

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return _obstacle(probes, (self.score,), self.reference_model, least=1)

    def cost(self, probes: Probes) -> Cost:
        return _cost(probes, (self.score,))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        found = measure((self.score,), target, probes, setting, self.reference_model)
        return _findings(self.name, {i: one[0] for i, one in found.items()}, probes, setting, self.rate)


@dataclass(frozen=True)
class MembershipEnsemble:
    """Several membership scores weighed together by a logistic regression, each record judged by the others.

    Scores are standardised and weighed by a ridge-penalised logistic regression that tells forget from
    holdout records; every record is scored by a fit that did not see it (cross-validation). What it flags,
    and what a recovery's score is, is as with `Membership`. It also learns whatever else sets the two sets
    apart: read it beside the control, on which that alone is left.

    Args:
        scores: At least two of the six, each once.
        folds: Of the cross-validation, at least 2; fewer where a set has fewer records.
        rate: False positives, in (0, 1).
        reference_model: As with `Membership`.
    """

    scores: tuple[Score, ...] = ("loss", "zlib", "gradient_norm", "min_k", "min_k_plus_plus")
    folds: int = 5
    rate: float = 0.05
    reference_model: str = DEFAULT_MODEL
    name: ClassVar[str] = "membership-ensemble"
    family: ClassVar[Family] = "membership"
    line: ClassVar[str] = "Membership scores weighed together, each record judged by a fit without it."

    def __post_init__(self) -> None:
        _check(self.rate, self.scores)
        if len(self.scores) < 2 or self.folds < 2:
            raise ValueError(
                "`scores` and `folds` must be at least 2 (an ensemble, cross-validated); "
                f"got {len(self.scores)}, {self.folds}."
            )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return _obstacle(probes, self.scores, self.reference_model, least=2)

    def cost(self, probes: Probes) -> Cost:
        return _cost(probes, self.scores)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        found = measure(self.scores, target, probes, setting, self.reference_model)
        odds = self._odds(found, len(probes.forget), setting.seed)
        return _findings(self.name, odds, probes, setting, self.rate)

    def _odds(self, found: Found, count: int, seed: int) -> dict[int, float]:
        """Log-odds of membership, each from a fit on other folds; none where a fit is not possible."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        records = [i for i, values in found.items() if np.isfinite(values).all()]
        member = np.array([i < count for i in records], dtype=bool)
        smallest = min(int(member.sum()), int((~member).sum()))
        if smallest < 2:
            return {}
        folds = StratifiedKFold(min(self.folds, smallest), shuffle=True, random_state=seed)
        fit = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        table = np.array([found[i] for i in records])
        odds = cross_val_predict(fit, table, member, cv=folds, method="decision_function")
        return dict(zip(records, map(float, odds), strict=True))


def measure(
    names: Sequence[Score],
    target: Target,
    probes: Probes,
    setting: Setting,
    reference_model: str = DEFAULT_MODEL,
) -> Found:
    """Scores of the forget records, and behind them of the holdout records; higher for more familiar ones.

    Holdout records come first in time, since without them no score means anything.

    Args:
        names: Which scores.
        target: The model.
        probes: The records.
        setting: Precision and clock.
        reference_model: For "reference".
    """
    records = [*probes.forget, *probes.holdout]
    order = [*range(len(probes.forget), len(records)), *range(len(probes.forget))]
    other = _reference(target, reference_model) if "reference" in names else None
    found: dict[int, Sequence[float]] = {}
    for start in range(0, len(order), _PORTION):
        if setting.clock.over:
            break
        part = order[start : start + _PORTION]
        seen = _evidence(names, target, other, [records[i] for i in part], probes.encoding, setting)
        found.update({i: [_SCORES[name](one) for name in names] for i, one in zip(part, seen, strict=True)})
    return found


@dataclass(frozen=True)
class _Evidence:
    """What the scores are made from."""

    response: str
    tokens: TokenScores
    reference: TokenScores | None
    norm: float


def _against(seen: _Evidence) -> float:
    assert seen.reference is not None
    return membership.reference(seen.tokens, seen.reference)


_SCORES: Final[Mapping[Score, Callable[[_Evidence], float]]] = {
    "loss": lambda seen: membership.loss(seen.tokens),
    "zlib": lambda seen: membership.zlib_ratio(seen.tokens, seen.response),
    "reference": _against,
    "gradient_norm": lambda seen: membership.gradient_norm(seen.norm),
    "min_k": lambda seen: membership.min_k(seen.tokens),
    "min_k_plus_plus": lambda seen: membership.min_k_plus_plus(seen.tokens),
}


def _evidence(
    names: Sequence[Score],
    target: Target,
    other: Target | None,
    records: Sequence[Record],
    encoding: Encoding,
    setting: Setting,
) -> list[_Evidence]:
    """One pass over some records for all scores, and those further ones that a score needs."""
    rows = _fitting(encoding, target).rows(records, target.tokenizer, name="records of a membership attack")
    moments = "min_k_plus_plus" in names
    tokens = _scored(target, records, encoding, setting, moments=moments)
    theirs = [None] * len(rows) if other is None else _scored(other, records, encoding, setting)
    norms = [0.0] * len(rows)
    if "gradient_norm" in names:
        norms = gradient_norms(target.model, rows, precision=setting.precision)
    return [
        _Evidence(record.response, mine, reference, norm)
        for record, mine, reference, norm in zip(records, tokens, theirs, norms, strict=True)
    ]


def _scored(
    target: Target, records: Sequence[Record], encoding: Encoding, setting: Setting, *, moments: bool = False
) -> list[TokenScores]:
    """Of the responses, without the token that ends them where that leaves any."""
    rows = _fitting(encoding, target).rows(records, target.tokenizer, name="records of a membership attack")
    pad = int(target.tokenizer.pad_token_id or 0)
    found = score(target.model, rows, pad_id=pad, precision=setting.precision, moments=moments)
    return [membership.without_end(one) if len(one.log_probs) > 1 else one for one in found]


def _fitting(encoding: Encoding, target: Target) -> Encoding:
    """Rows that exceed the model's context are cut to it."""
    return Encoding(encoding.template, encoding.max_length or model_context(target.model))


def _reference(target: Target, source: str) -> Target:
    model = load_model(source)
    cast(Any, model).to(next(target.model.parameters()).device)
    return Target("control", model, load_tokenizer(source))


def _findings(
    name: str, found: Mapping[int, float], probes: Probes, setting: Setting, rate: float
) -> Findings:
    """Which forget records are flagged, and how well the two sets are told apart."""
    count, every = len(probes.forget), len(probes.forget) + len(probes.holdout)
    found = {i: value for i, value in found.items() if np.isfinite(value)}
    others = np.array([found[i] for i in range(count, every) if i in found])
    complete = len(found) == every
    notes = [] if complete else [_why(found, every, setting)]
    if len(others) < len(probes.holdout):
        return Findings([UNREACHED] * count, notes=notes, complete=complete)
    if len(others) < 1 / rate:
        notes.append(
            f"With {len(others)} holdout records flagged means more familiar than all of them: about "
            f"{1 / (len(others) + 1):.0%} of records never seen are, not {rate:.0%}."
        )
    members = [found[i] for i in range(count) if i in found]
    recoveries = [_recovery(name, found[i], others, rate) if i in found else UNREACHED for i in range(count)]
    values = {}
    if members:
        values["auc"] = intervals.membership_auc(members, others.tolist(), seed=setting.seed)
        flags = [float(one.recovered) for one in recoveries if one.tries]
        values["flagged"] = intervals.share(flags, seed=setting.seed)
    return Findings(recoveries, values=values, notes=notes, complete=complete)


def _why(found: Mapping[int, float], every: int, setting: Setting) -> str:
    """Why records have no score."""
    if setting.clock.over:
        return stopped(setting, len(found), every, "records")
    return f"{every - len(found)} of {every} records gave no finite score: the model is broken on them."


def _recovery(name: str, value: float, others: npt.NDArray[np.float64], rate: float) -> Recovery:
    familiar = float((others >= value).mean())
    words = f"{name.removeprefix('membership-')} {value:.4g}; {familiar:.0%} of the holdout look as familiar"
    return Recovery(float((others < value).mean()), familiar <= rate, words)


def _check(rate: float, scores: Sequence[str]) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"`rate` must be in (0, 1); got {rate}. 0.05 flags one unseen record in twenty.")
    wrong = [name for name in scores if name not in get_args(Score)]
    if wrong or len({*scores}) < len(scores):
        raise ValueError(
            f"`scores` must be different ones of {', '.join(get_args(Score))}; got {', '.join(scores)}."
        )


def _obstacle(probes: Probes, scores: Sequence[str], reference_model: str, *, least: int) -> str | None:
    if min(len(probes.forget), len(probes.holdout)) < least:
        return (
            f"It needs at least {least} forget and {least} holdout records, "
            f"found {len(probes.forget)} and {len(probes.holdout)}: give --holdout."
        )
    if "reference" in scores:
        try:
            configured_context(reference_model)
        except UsageError as error:
            return f"It needs a model that never saw the records (reference_model): {error}"
    return None


def _cost(probes: Probes, scores: Sequence[str]) -> Cost:
    """One pass per score; a second model's for the reference, a backward pass for gradient norms."""
    tokens = sum(tokens_in(r.prompt) + tokens_in(r.response) for r in (*probes.forget, *probes.holdout))
    return Cost(
        forward_tokens=tokens * (len(scores) + ("reference" in scores)),
        backward_tokens=tokens * ("gradient_norm" in scores),
    )
