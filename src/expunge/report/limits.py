"""What a run did not test: the list that keeps a reader from concluding too much."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.record import RunRecord
from expunge.report.wording import is_benchmark


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that was not tested; `here` when this record lacks what others of its kind have."""

    title: str
    text: str
    here: bool = False


_ALWAYS = (
    Limit("Relearning", "Whether a little further training, even on harmless text, brings the records back."),
    Limit("Quantisation", "Whether rounding the weights to 8 or 4 bits undoes the change."),
    Limit("Paraphrases", "Other wordings of the same prompts, and prompts that ask in a roundabout way."),
    Limit("Other languages", "Whether the records can be had by asking in another language."),
    Limit("Jailbreaks", "Prompts written to draw the records out: role play, prefixes, optimised suffixes."),
    Limit("Repeated sampling", "Only the likeliest continuation was generated; random ones may say more."),
    Limit("Embedding-space attacks", "Soft prompts, and probes that read the hidden states directly."),
    Limit(
        "Implied knowledge",
        "What other records or general knowledge let the model infer.",
    ),
    Limit("General ability", "Anything outside the retain set: reasoning, code, conversation, refusals."),
    Limit("Other copies", "Earlier checkpoints, logs, backups and search indexes that hold the data."),
)


def not_tested(record: RunRecord) -> list[Limit]:
    """What this record lacks first, then what no record of this kind covers."""
    about_learning = {"Paraphrases", "Repeated sampling", "General ability"}
    learning = record.kind == "finetune"
    return [*_lacking(record), *(limit for limit in _ALWAYS if not learning or limit.title in about_learning)]


def _lacking(record: RunRecord) -> list[Limit]:
    judged = record.kind != "finetune"
    own = judged and not is_benchmark(record)
    lacking = [
        (judged and "control" not in record.evaluations, _CONTROL),
        (own and not _has(record, "holdout"), _HOLDOUT),
        (own and not _has(record, "retain"), _RETAIN),
        (not record.evaluations, _EVALUATION),
        (
            True,
            Limit(
                "Other seeds",
                f"This is seed {record.seed} alone; another may come out differently.",
                True,
            ),
        ),
    ]
    return [limit for missing, limit in lacking if missing]


def _has(record: RunRecord, split: str) -> bool:
    return split in record.data or any(split in found.splits for found in record.evaluations.values())


_CONTROL = Limit(
    "Control model", "No model that never saw the forget records was measured beside this one.", here=True
)
_HOLDOUT = Limit(
    "Holdout",
    "No records that the model never saw were measured: guesswork is not accounted for.",
    here=True,
)
_RETAIN = Limit("Retain set", "Nothing was measured of what the model should still know.", here=True)
_EVALUATION = Limit("Evaluation", "The record holds no evaluation of any model.", here=True)
