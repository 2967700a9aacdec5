"""What a run that continues others says of the records that these removed."""

from __future__ import annotations

from expunge.chain import PREFIX, earlier_splits
from expunge.record import Metric, RunRecord
from expunge.report.verdict import Finding, Reference, metric, reference
from expunge.report.wording import LEAK, with_interval

QUESTION = "Is what was removed earlier still gone?"
RULE = (
    "Still gone means: the interval of the leak of every earlier forget set reaches down to that of the "
    "reference (a control model, or else a holdout), or the leak lies no higher than before this run."
)


def earlier_finding(record: RunRecord) -> tuple[Finding, ...]:
    """One finding over all earlier forget sets; none where the run continues no other."""
    after = record.evaluations.get("after")
    if record.after is None or after is None:
        return ()
    against = reference(record)
    back, parts = [], []
    for split in earlier_splits(after.splits):
        now, then = metric(record, "after", split), metric(record, "before", split)
        if now is None or then is None:
            continue
        request = split.removeprefix(PREFIX)
        leaks = f"{with_interval(LEAK, now)}, {with_interval(LEAK, then)} before"
        parts.append(f"request {request}: leak {leaks}")
        if not _gone(now, then, against):
            back.append(request)
    if not parts:
        return (Finding(QUESTION, "unknown", "Not measured", "no earlier forget set was measured", RULE),)
    word = f"Request {', '.join(back)} leaks again" if back else "Still gone"
    return (Finding(QUESTION, "no" if back else "yes", word, "; ".join(parts), RULE),)


def _gone(now: Metric, then: Metric, against: Reference | None) -> bool:
    return now.value <= then.value or (against is not None and now.low <= against.metric.high)
