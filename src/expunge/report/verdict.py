"""What the numbers of a run allow to be said: pure functions from metrics to findings.

Nothing here is favourable by default: a finding whose numbers are missing is `unknown`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from expunge.record import Metric, RunRecord, Stage
from expunge.report.wording import LEAK, percent, with_interval, words

Status = Literal["yes", "barely", "partly", "no", "unknown"]

KEPT = 0.95
PARTLY_KEPT = 0.80
FEW = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question, the numbers it rests on, the rule that was applied, and what weakens it."""

    question: str
    status: Status
    word: str
    sentence: str
    rule: str
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """The leak of a model, or of records, that cannot know the forget set."""

    name: str
    metric: Metric


FORGET_RULE = (
    "Leak is the share of records that the model writes out word for word. Forgotten means: it is clearly "
    f"lower than before, and its {percent(0.95)} interval reaches down to that of the reference (a control "
    "model that never saw the records, or else a holdout: records that the model never saw)."
)
KEEP_RULE = (
    f"Kept means: on the retain set, the model still gives at least {percent(KEPT)} of the exactly right "
    f"answers that it gave before; partly kept, at least {percent(PARTLY_KEPT)}."
)
LEARN_RULE = f"Learned means: the share of exact answers rose, and the {percent(0.95)} intervals do not meet."


def findings(record: RunRecord) -> tuple[Finding, ...]:
    """The questions that a record of this kind can answer, each with its answer."""
    if record.kind == "finetune":
        return (judge_learning(*_known_split(record)),)
    if record.kind == "evaluate" and not {"before", "after"} <= record.evaluations.keys():
        return (_only_measured(record),)
    forget_before, forget_after = metric(record, "before", "forget"), metric(record, "after", "forget")
    kept = judge_keeping(kept_from(record), metric(record, "after", "retain"))
    return judge_forgetting(forget_before, forget_after, reference(record)), _since_first(record, kept)


def kept_from(record: RunRecord) -> Metric | None:
    """Exact retain answers that a run is accounted against: the first model's, where it continues another."""
    if record.after is None or record.after.first_evaluation is None:
        return metric(record, "before", "retain")
    return record.after.first_evaluation.splits.get("retain", {}).get(LEAK)


def _since_first(record: RunRecord, kept: Finding) -> Finding:
    if record.after is None or record.after.first_evaluation is None:
        return kept
    caution = f"Before means the first model of {record.after.request} requests: losses of all of them count."
    return replace(kept, cautions=(caution, *kept.cautions))


def metric(record: RunRecord, stage: Stage, split: str, name: str = LEAK) -> Metric | None:
    """A metric of the record, or None when it is absent or not finite."""
    evaluation = record.evaluations.get(stage)
    found = evaluation.splits.get(split, {}).get(name) if evaluation else None
    finite = found is not None and all(map(math.isfinite, (found.value, found.low, found.high)))
    return found if finite else None


def reference(record: RunRecord, name: str = LEAK) -> Reference | None:
    """What the forget set is held against: the control model's value on it, or else the holdout's."""
    control = metric(record, "control", "forget", name)
    if control is not None:
        return Reference("control", control)
    holdout = metric(record, "after" if "after" in record.evaluations else "before", "holdout", name)
    return Reference("holdout", holdout) if holdout is not None else None


def judge_forgetting(before: Metric | None, after: Metric | None, against: Reference | None) -> Finding:
    """Whether the forget records are forgotten.

    `yes` iff the leak after is clearly below the leak before (disjoint intervals) and within the reference's
    interval or below it; `barely` when only its own interval reaches down to the reference's, which a small
    sample cannot tell from `yes`. `partly` when it only fell, `no` when it did not, `unknown` when a number
    is missing or when the intervals are too wide to tell before from after.
    """
    status, word = _forgetting(before, after, against)
    sentence = "; ".join(part for part in _leak_parts(before, after, against) if part)
    return Finding(
        "Are the forget records forgotten?",
        status,
        word,
        sentence,
        FORGET_RULE,
        _forgetting_cautions(status, before, after, against),
    )


def _forgetting(before: Metric | None, after: Metric | None, against: Reference | None) -> tuple[Status, str]:
    if before is None or after is None:
        return "unknown", "Not measured"
    if against is None:
        return "unknown", "Not shown"
    at_reference, fell = after.low <= against.metric.high, after.high < before.low
    if after.value <= against.metric.high and fell:
        return "yes", "Forgotten"
    if at_reference and fell:
        return "barely", f"Forgotten, as far as {after.n} records tell"
    if at_reference:
        return "unknown", "Not shown"
    return ("partly", "Partly forgotten") if fell else ("no", "Not forgotten")


def _leak_parts(before: Metric | None, after: Metric | None, against: Reference | None) -> tuple[str, str]:
    leak = f"leak {_leak(after)}, before {_leak(before)}"
    return leak, f"{against.name} {_leak(against.metric)}" if against else "nothing to compare with"


def _leak(found: Metric | None) -> str:
    return with_interval(LEAK, found) if found else "not measured"


def _forgetting_cautions(
    status: Status, before: Metric | None, after: Metric | None, against: Reference | None
) -> tuple[str, ...]:
    if before is None or after is None:
        return ()
    if against is None:
        missing = (
            "Without a control model or a holdout there is no telling how much of the leak is guesswork."
        )
        return (missing,)
    found = []
    if status == "unknown" and before.low <= against.metric.high:
        found.append(
            "The model did not reproduce these records measurably even before: there was nothing to show."
        )
    elif status == "unknown":
        found.append("The intervals before and after overlap: there are too few records to tell them apart.")
    if status == "barely":
        found.append(
            f"The leak lies above the {against.name}'s interval. That may be chance; more records would tell."
        )
    return (*found, *_few(after.n, "forget"), *_few(against.metric.n, against.name))


def _few(n: int, split: str) -> tuple[str, ...]:
    return (f"The {split} figure rests on {n} record{'s' if n != 1 else ''} only.",) if n < FEW else ()


def judge_keeping(before: Metric | None, after: Metric | None) -> Finding:
    """Whether what should stay has stayed: the retain set's exact answers after, as a share of before."""
    question = "Is the rest kept?"
    if before is None or after is None:
        sentence = f"exact answers on the retain set {_leak(after)}, before {_leak(before)}"
        return Finding(question, "unknown", "Not measured", sentence, KEEP_RULE)
    change = f"{with_interval(LEAK, before)} → {with_interval(LEAK, after)}"
    if before.value <= 0:
        caution = (
            "The model answered none of the retain set exactly even before: this measure cannot show a loss."
        )
        return Finding(
            question, "unknown", "Not shown", f"exact retain answers {change}", KEEP_RULE, (caution,)
        )
    share = after.value / before.value
    status, word = _keeping(share)
    sentence = f"{percent(share)} of the exact retain answers before ({change})"
    return Finding(question, status, word, sentence, KEEP_RULE, _keeping_cautions(status, before, after))


def _keeping(share: float) -> tuple[Status, str]:
    if share >= KEPT - 1e-9:
        return "yes", "Kept"
    return ("partly", "Partly kept") if share >= PARTLY_KEPT - 1e-9 else ("no", "Not kept")


def _keeping_cautions(status: Status, before: Metric, after: Metric) -> tuple[str, ...]:
    worst = after.low / before.value
    wide = (
        f"The interval reaches down to {percent(worst)} of before: with {after.n} records a larger loss is "
        "not excluded."
    )
    return ((wide,) if status == "yes" and worst < KEPT else ()) + _few(after.n, "retain")


def judge_learning(split: str, before: Metric | None, after: Metric | None) -> Finding:
    """Whether fine-tuning taught the model its records."""
    question = "Did the model learn the records?"
    sentence = f"exact answers on {split} {_leak(after)}, before {_leak(before)}"
    if before is None or after is None:
        return Finding(question, "unknown", "Not measured", sentence, LEARN_RULE)
    learned = after.low > before.high
    word = "Learned" if learned else "Not learned"
    return Finding(question, "yes" if learned else "no", word, sentence, LEARN_RULE, _few(after.n, split))


def _known_split(record: RunRecord) -> tuple[str, Metric | None, Metric | None]:
    splits = [name for stage in ("after", "before") for name in _splits(record, stage)]
    split = next((name for name in ("train", *splits) if name in splits), "the training set")
    return split, metric(record, "before", split), metric(record, "after", split)


def _splits(record: RunRecord, stage: Stage) -> list[str]:
    evaluation = record.evaluations.get(stage)
    return list(evaluation.splits) if evaluation else []


def _only_measured(record: RunRecord) -> Finding:
    parts = [
        f"{split} {with_interval(LEAK, found)}"
        for stage in record.evaluations
        for split in _splits(record, stage)
        if (found := metric(record, stage, split)) is not None
    ]
    sentence = f"{words(LEAK).name}: {'; '.join(parts)}" if parts else "no leak was measured"
    rule = (
        "Whether something was forgotten or kept takes a model before and one after; this record has no pair."
    )
    return Finding("What was found?", "unknown", "Measured only", sentence, rule)


def agreement(record: RunRecord) -> tuple[list[str], list[str]]:
    """The other metrics by whether forget, after, meets the interval of its reference: (does, does not)."""
    alike: list[str] = []
    apart: list[str] = []
    for name in _measured(record):
        after, against = metric(record, "after", "forget", name), reference(record, name)
        if name != LEAK and after is not None and against is not None:
            meets = after.low <= against.metric.high and against.metric.low <= after.high
            (alike if meets else apart).append(words(name).inline)
    return alike, apart


def _measured(record: RunRecord) -> list[str]:
    after = record.evaluations.get("after")
    return list(after.splits.get("forget", {})) if after else []
