"""Our results in the official formats: the authors' aggregated log, OpenUnlearning's log and summary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from expunge.benchmarks.tofu.logs import ATTACKS, PREFIXES, TASKS
from expunge.benchmarks.tofu.metrics import measured
from expunge.benchmarks.tofu.questions import (
    OPTIONS,
    Loss,
    Question,
    Scores,
    log_ratio,
    normalised_probability,
)
from expunge.record import Metric, write_atomically

Row = Mapping[str, Any]


def write_logs(scores: Scores, reference: Scores | None, folder: Path, seed: int = 0) -> list[Path]:
    """Write `eval_log_aggregated.json`, `TOFU_EVAL.json` and `TOFU_SUMMARY.json` into a folder.

    Args:
        scores: Of the model.
        reference: Of the retain model, for forget quality and privleak.
        folder: Made if it does not exist.
        seed: Does not matter to what is written: these formats know no intervals.
    """
    splits = measured(scores, reference, seed).splits
    log = open_unlearning_log(scores, splits)
    files = {
        "eval_log_aggregated.json": tofu_log(scores),
        "TOFU_EVAL.json": log,
        "TOFU_SUMMARY.json": summary(log),
    }
    return [write_atomically(folder / name, json.dumps(file, indent=4)) for name, file in files.items()]


def tofu_log(scores: Scores) -> dict[str, dict[str, Any]]:
    """The aggregated log of the authors' `evaluate_util.py`; what is not known is left out."""
    return {
        task: {field: dict(enumerated) for field, enumerated in _columns(scores.questions[name], name)}
        for name, task in TASKS.items()
        if name in scores.questions
    }


def open_unlearning_log(scores: Scores, splits: Mapping[str, Mapping[str, Metric]]) -> dict[str, Any]:
    """The log of OpenUnlearning's evaluator, keys in order.

    Args:
        scores: Of the model.
        splits: Its metrics, as `metrics.measured` gives them.
    """
    log: dict[str, Any] = {}
    for name, questions in scores.questions.items():
        log |= _open_set(name, questions, splits.get(name, {}))
    for metric in ("extraction_strength", "exact_memorization"):
        if metric in splits.get("forget", {}):
            values = [{"score": value} for value in getattr(scores, metric)]
            log[metric] = _entry(splits["forget"][metric].value, values)
    for theirs, ours in ATTACKS.items():
        if ours in scores.attacks:
            log[theirs] = _open_attack(scores.attacks[ours], splits["forget"][f"membership_{ours}_auc"].value)
    for metric in ("model_utility", "forget_quality", "privleak"):
        if metric in splits.get("all", {}):
            log[metric] = {"agg_value": splits["all"][metric].value}
    return dict(sorted(log.items()))


def summary(log: Mapping[str, Any]) -> dict[str, float]:
    """OpenUnlearning's summary of its log: metric -> value."""
    return {metric: entry["agg_value"] for metric, entry in log.items()}


# --- the authors' format


def _columns(questions: Sequence[Question], name: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    makers: dict[str, Callable[[Question], Any]] = {
        "avg_gt_loss": lambda q: _nll(q.answer),
        "gt_loss": lambda q: _sum(q.answer),
        "num_token_gt": lambda q: q.answer and q.answer.tokens,
        "generated_text": lambda q: None if q.generation is None else [q.prompt, q.generation, q.response],
        "rouge1_recall": lambda q: None if q.generation is None else _rouge(q)["rouge1"].recall,
        "rougeL_recall": lambda q: q.rouge_l,
        "average_perturb_loss": lambda q: _all(_nll, q.perturbed),
        "avg_paraphrased_loss": lambda q: _nll(q.paraphrase),
        "truth_ratio": _ratio,
        "paraphrased_loss": lambda q: _sum(q.paraphrase),
        "perturb_loss": lambda q: _all(_sum, q.perturbed),
        "num_token_paraphrased": lambda q: q.paraphrase and q.paraphrase.tokens,
        "num_token_perturb": lambda q: _all(lambda loss: loss and loss.tokens, q.perturbed),
    }
    if name in OPTIONS:
        makers["normalized_gt_loss"] = _normalised_loss
    columns = {field: [maker(question) for question in questions] for field, maker in makers.items()}
    return [
        (field, [(str(index), value) for index, value in enumerate(values)])
        for field, values in columns.items()
        if None not in values
    ]


def _nll(loss: Loss | None) -> float | None:
    return None if loss is None else loss.nll


def _sum(loss: Loss | None) -> float | None:
    return None if loss is None or loss.tokens is None else loss.nll * loss.tokens


def _all(of: Callable[[Loss | None], Any], losses: Sequence[Loss]) -> list[Any] | None:
    values = [of(loss) for loss in losses]
    return None if not values or None in values else values


def _ratio(question: Question) -> float | None:
    ratio = log_ratio(question)
    return None if ratio is None else _exp(ratio)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _normalised_loss(question: Question) -> float | None:
    share = normalised_probability(question)
    return None if share is None else (-math.log(share) if share else math.inf)


def _rouge(question: Question) -> Any:
    return _scorer().score(question.response, question.generation)


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


# --- OpenUnlearning's format


def _entry(value: float, rows: Sequence[Row]) -> dict[str, Any]:
    return {"agg_value": value, "value_by_index": {str(index): row for index, row in enumerate(rows)}}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _open_set(name: str, questions: Sequence[Question], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    prefix, log = PREFIXES[name], {}
    answers = [question.answer for question in questions]
    log[f"{prefix}_Q_A_Prob"] = _open_losses(answers)
    if name not in OPTIONS:
        log[f"{prefix}_Q_A_PARA_Prob"] = _open_losses([question.paraphrase for question in questions])
    log[f"{prefix}_Q_A_PERT_Prob"] = _open_perturbed(questions)
    if "rouge_l_recall" in metrics and all(question.generation is not None for question in questions):
        rows = [_open_rouge(question) for question in questions]
        log[f"{prefix}_Q_A_ROUGE"] = _entry(metrics["rouge_l_recall"].value, rows)
    if "truth_ratio" in metrics:
        ratio = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        log[ratio] = _entry(metrics["truth_ratio"].value, [{"score": _ratio(q)} for q in questions])
    if "normalised_probability" in metrics:
        shares = [{"prob": normalised_probability(question)} for question in questions]
        log[f"{prefix}_Q_A_Prob_normalised"] = _entry(metrics["normalised_probability"].value, shares)
    return {metric: entry for metric, entry in log.items() if entry is not None}


def _open_losses(losses: Sequence[Loss | None]) -> dict[str, Any] | None:
    rows = [{"prob": math.exp(-loss.nll), "avg_loss": loss.nll} for loss in losses if loss is not None]
    return _entry(_mean([row["prob"] for row in rows]), rows) if len(rows) == len(losses) > 0 else None


def _open_perturbed(questions: Sequence[Question]) -> dict[str, Any] | None:
    if not questions or not all(question.perturbed for question in questions):
        return None
    rows = [[loss.nll for loss in question.perturbed] for question in questions]
    probabilities = [[math.exp(-nll) for nll in nlls] for nlls in rows]
    values = [{"prob": p, "avg_loss": nlls} for p, nlls in zip(probabilities, rows, strict=True)]
    return _entry(_mean([_mean(p) for p in probabilities]), values)


def _open_rouge(question: Question) -> dict[str, Any]:
    found = _rouge(question)
    return {
        "rouge1_recall": found["rouge1"].recall,
        "rougeL_f1": found["rougeL"].fmeasure,
        "rougeL_recall": question.rouge_l,
        "input": question.prompt,
        "ground_truth": question.response,
        "generation": question.generation,
    }


def _open_attack(sides: tuple[Sequence[float], Sequence[float]], auc: float) -> dict[str, Any]:
    """Scores are losses there: low for members."""
    rows = [[{"score": -value} for value in values] for values in sides]
    forget, holdout = (_entry(_mean([row["score"] for row in side]), side) for side in rows)
    return {"forget": forget, "holdout": holdout, "auc": auc, "agg_value": auc}
