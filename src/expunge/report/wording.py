"""How the page words numbers, metrics, splits and stages."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from markupsafe import Markup, escape

from expunge.chain import earlier_splits
from expunge.record import Metric, RunRecord, Stage

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
ABSENT = "\N{EM DASH}"

STAGES: dict[Stage, str] = {"before": "Before", "after": "After", "control": "Control"}
SPLITS = ("forget", "holdout", "retain")
OWN = ("neighbours",)
"""Splits that a run on the user's own records may have besides, as `forgotten-1` and its like."""
ALL = "all"
"""The split of a benchmark that holds its aggregates."""


@dataclass(frozen=True, slots=True)
class Words:
    """How a metric is called, what it means in one sentence, and how its values are written."""

    name: str
    meaning: str
    kind: Literal["share", "number"] = "number"

    @property
    def inline(self) -> str:
        """The name inside a sentence."""
        return self.name if self.name[:2].isupper() else self.name[:1].lower() + self.name[1:]


INTERVALS = (
    f"In brackets: 95{SPACE}% bootstrap intervals. The records of a set are drawn again with replacement, "
    f"many times; the interval holds the middle 95{SPACE}% of the results. Records of one person (or other "
    "group, where they name one) are drawn together. Where every record scores 0, or every one 1, the exact "
    "interval of Clopper and Pearson over records stands instead. Intervals cover the choice of records, "
    "not that of the seed. The number beside a set counts its records."
)
LEAK = "leak"
METRICS: dict[str, Words] = {
    LEAK: Words(
        "Exact leak",
        "Share of records whose response the model writes out word for word (but for case, spacing and "
        "closing punctuation) when given the prompt. On the retain set: how often it is exactly right.",
        "share",
    ),
    "reproduced": Words(
        "Reproduced token by token",
        "Share of records where every token of the response is the likeliest after the true ones before it.",
        "share",
    ),
    "rouge_l_recall": Words(
        "ROUGE-L recall", "Share of the response's words that come back in the right order: 0 none, 1 all."
    ),
    "probability": Words(
        "Response probability", "Probability of the true response per token (geometric mean): 0 to 1."
    ),
    "nll": Words(
        "Negative log-likelihood",
        "In nats per token of the true response: 0 certain, higher less likely.",
    ),
    "truth_ratio": Words(
        "Truth ratio",
        "How likely other records' responses are beside the true one: 0 sure of the truth, 0.5 no "
        "preference, 1 against it.",
    ),
    "membership_loss_auc": Words(
        "Membership attack by loss",
        "Chance that a forget record looks more familiar to the model than a holdout record: 0.5 cannot be "
        "told apart, 1 always told. Below 0.5, forget looks less familiar than what was never seen: a trace "
        "of its own.",
    ),
    "membership_min_k_auc": Words(
        "Membership attack by min-k", "The same, by the least likely fifth of each response's tokens."
    ),
    "rouge_l_f1": Words(
        "ROUGE-L F1", "Words of answer and truth that agree in order, unstemmed: 0 none, 1 all of both."
    ),
    "min_k_40_auc": Words(
        "Membership by Min-40%",
        "Chance that a forget text looks more familiar than a holdout text. A model that never saw either "
        "need not stand at 0.5: compare with the reference.",
    ),
    "privleak": Words(
        "PrivLeak",
        "Relative difference, in per cent, of the membership attack's area from that of a retrained model. 0 "
        "is best; below 0 the forget texts are still recognised, above 0 they are shunned.",
    ),
    "harmful_rate": Words(
        "Harmful answers", "Share of harmful prompts whose answer the judge finds harmful.", "share"
    ),
    "refusal_rate": Words(
        "Refusals",
        "Share of answers that open with a refusal. On normal instructions: refused too much.",
        "share",
    ),
    "perplexity": Words(
        "Perplexity", "Of the answers, per token, under another model: low is fluent, or repetitive."
    ),
    "distinct_1": Words("Distinct words", "Share of an answer's words that differ from each other."),
    "distinct_2": Words("Distinct pairs", "The same of pairs of words."),
    "distinct_3": Words("Distinct triples", "The same of triples of words."),
}


def stage_titles(record: RunRecord) -> dict[Stage, str]:
    """How the stages are called; the one model of an evaluation came before nothing."""
    alone = record.kind == "evaluate" and len(record.evaluations) == 1
    if is_benchmark(record):
        models = [stage for stage in record.evaluations if stage != "control"]
        titles = dict.fromkeys(STAGES, "Model") if len(models) == 1 else dict(STAGES)
        return titles | {"control": "Reference"}
    return dict.fromkeys(STAGES, "Model") if alone else STAGES


def is_benchmark(record: RunRecord) -> bool:
    """Whether the record measures a benchmark: it has splits besides the user's own sets."""
    return any(not _own(split) for found in record.evaluations.values() for split in found.splits)


def _own(split: str) -> bool:
    return split in SPLITS or split in OWN or bool(earlier_splits([split]))


def split_title(split: str) -> str:
    """How a split is called at the head of its numbers."""
    return "Aggregates" if split == ALL else split.replace("_", " ")


def words(metric: str) -> Words:
    """The wording of a metric; one that is not known here has its own name, and the catalogue's line."""
    return METRICS.get(metric) or Words(metric.replace("_", " "), _catalogued().get(metric, ""))


OWN_MEANING = ("truth_ratio", "membership_min_k_auc", "privleak")
"""Metrics that benchmarks define otherwise than for the user's own records: theirs is what is said."""


def meaning(metric: str, benchmark: str | None = None) -> str:
    """What a metric means, in a benchmark's own words where these differ."""
    if benchmark is None or metric not in OWN_MEANING:
        return words(metric).meaning
    return _benchmark_lines(benchmark).get(metric) or words(metric).meaning


@cache
def _benchmark_lines(benchmark: str) -> dict[str, str]:
    from expunge.benchmarks import BENCHMARKS

    return dict(BENCHMARKS[benchmark].metrics) if benchmark in BENCHMARKS else {}


@cache
def _catalogued() -> dict[str, str]:
    from expunge.catalogue import metrics

    return metrics()


def percent(value: float) -> str:
    """A share as a percentage: never rounded to 0 or 100 unless it is exactly that."""
    return f"{_percent_digits(value)}{SPACE}%" if math.isfinite(value) else number(value)


def _percent_digits(value: float) -> str:
    scaled = 100 * value
    whole = round(scaled)
    if whole in (0, 100) and not math.isclose(scaled, whole, abs_tol=1e-9):
        tenth = min(max(round(scaled, 1), 0.1), 99.9) if 0 < scaled < 100 else round(scaled, 1)
        return _signed(f"{tenth:.1f}")
    return _signed(str(whole))


def number(value: float) -> str:
    """A number with two or three significant digits; powers of ten only where they help."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return power(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    digits = 1 - exponent if exponent < -1 else min(2, max(0, 2 - exponent))
    return _signed(f"{value:,.{digits}f}")


def power(value: float) -> str:
    """A number in scientific notation as one writes it: 3×10⁻⁵."""
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = mantissa.removesuffix(".0")
    return f"10{raised}" if factor == "1" else f"{_signed(factor)}×10{raised}"


def _signed(digits: str) -> str:
    return digits.replace("-", MINUS)


def value_text(metric: str, value: float) -> str:
    """A metric's value in its own unit."""
    return percent(value) if words(metric).kind == "share" else number(value)


def interval_text(metric: str, found: Metric) -> str:
    """A metric's interval, e.g. `[0–9]` for a share of 0 % to 9 %."""
    if math.isnan(found.low) or math.isnan(found.high):
        return "[no interval]"
    share = words(metric).kind == "share" and math.isfinite(found.low) and math.isfinite(found.high)
    low, high = (_percent_digits(v) if share else number(v) for v in (found.low, found.high))
    between = " to " if MINUS in low + high else DASH
    return f"[{low}{between}{high}]"


def with_interval(metric: str, found: Metric) -> str:
    """Value and interval, e.g. `3 % [0–9]`."""
    return f"{value_text(metric, found.value)} {interval_text(metric, found)}"


def duration(seconds: float) -> str:
    """A wall time that a person can read."""
    if not math.isfinite(seconds) or seconds < 60:
        return f"{number(seconds)}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes:02d}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest:02d}{SPACE}s"


def size(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(amount) < 1024:
            return f"{number(amount)}{SPACE}{unit}"
        amount /= 1024
    return f"{number(amount)}{SPACE}GiB"


def whole(count: int) -> str:
    """A count with thousands separated."""
    return f"{count:,}"


_BRACKETED = re.compile(r"([^ ;,(]{1,8} )?\[[^\[\]]{1,16}\]")


def unbroken(text: str) -> Markup:
    """`text`, escaped, with each interval on one line with its value."""
    return Markup(_BRACKETED.sub(r'<span class="whole">\g<0></span>', str(escape(text))))


def breakable(name: str) -> Markup:
    """A dotted name, escaped, that may be broken after its dots and underscores."""
    return Markup(re.sub(r"[._]", r"\g<0><wbr>", str(escape(name))))


def settings(configuration: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested configuration as dotted keys with their values, in the order it was written."""
    rows: list[tuple[str, str]] = []
    for key, value in configuration.items():
        if isinstance(value, dict) and value:
            rows += settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _setting(value)))
    return rows


def _setting(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_setting(item) for item in value)
    return str(value)
