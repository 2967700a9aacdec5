"""TOFU results of others: the authors' `eval_log_aggregated.json` and OpenUnlearning's `TOFU_EVAL.json`.

Both hold losses per question, so every metric is computed here anew and gets its interval; the averages that
stand in the files are not looked at. Rows are matched by their index, never by their question.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.benchmarks.benchmark import Measured
from expunge.benchmarks.tofu.metrics import measured
from expunge.benchmarks.tofu.questions import OPTIONS, Loss, Question, Scores
from expunge.errors import UsageError

TASKS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
"""Set -> its key in the authors' aggregated log."""

PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
"""Set -> how its metrics begin in OpenUnlearning's log."""

ATTACKS = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_reference": "reference",
    "mia_gradnorm": "gradient_norm",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
}
"""OpenUnlearning's name of an attack -> ours."""


def from_tofu_logs(log: Path, reference_log: Path | None = None, seed: int = 0) -> Measured:
    """TOFU's metrics from logs of either kind, .json or .json.gz.

    Args:
        log: Of the model.
        reference_log: Of the retain model, for forget quality and privleak.
        seed: Of the intervals.

    Raises:
        UsageError: A file is missing or malformed, is of another benchmark, or the two are of different
            questions.
    """
    scores = read_log(log)
    if reference_log is None:
        return measured(scores, None, seed)
    reference = read_log(reference_log)
    compared = _check_same_questions(scores, reference, log, reference_log)
    result = measured(scores, reference, seed)
    if compared:
        return result
    note = "the logs hold no question texts: only the number of forget rows was compared."
    return replace(result, notes=[*result.notes, note])


def read_log(path: Path) -> Scores:
    """What one log says of one model.

    Raises:
        UsageError: The file is missing or malformed, or of another benchmark.
    """
    log = _read_json(path)
    if wrong := [key for key, found in log.items() if not isinstance(found, dict)]:
        shown = type(log[wrong[0]]).__name__
        raise UsageError(
            f"{path}: {wrong[0]!r} must be an object; found a {shown}. Name the log, not its summary."
        )
    if any(task in log for task in TASKS.values()):
        tasks = {name: log[task] for name, task in TASKS.items() if task in log}
        return Scores({name: _from_task(_Log(found, path), name) for name, found in tasks.items()})
    if any("_Q_A_" in key for key in log):
        return _from_open_unlearning(_Log(log, path))
    kind = "of MUSE" if any("knowmem" in key or "verbmem" in key for key in log) else "of something else"
    keys = ", ".join(list(log)[:4]) or "nothing"
    raise UsageError(
        f"{path} must be a TOFU log; it seems to be {kind} (it holds {keys}). Name an "
        "eval_log_aggregated.json of the authors' code or a TOFU_EVAL.json of OpenUnlearning."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"{path} must be a readable log; {why}. Name an existing file.") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} must be JSON (.json or .json.gz); {error}. Copy it again.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object; found a {type(content).__name__}. Name a log.")
    return content


# --- columns of either log


@dataclass(frozen=True, slots=True)
class _Log:
    """A mapping of columns, and where it was read for messages."""

    columns: Mapping[str, Any]
    path: Path

    def column(self, name: str, of: Callable[[Any], Any], inside: str | None = None) -> list[Any] | None:
        """Values of a column in the order of their indices; None if the log does not have it."""
        try:
            found = self.columns.get(name)
            found = found.get(inside) if found is not None and inside is not None else found
            if found is None:
                return None
            ordered = sorted(found.items(), key=lambda item: int(item[0]))
            values = [of(value) for _, value in ordered]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UsageError(
                f"{self.path}: {name!r} must map indices to results as the official code writes them; {why}. "
                "Evaluate again, or copy the file again."
            ) from None
        if [int(index) for index, _ in ordered] != list(range(len(ordered))):
            raise UsageError(
                f"{self.path}: {name!r} must have rows 0 to {len(ordered) - 1}; some are missing."
            )
        return values


_Columns = tuple[str, Callable[[Any], Any], str | None]


def _questions(log: _Log, columns: Mapping[str, _Columns], name: str) -> list[Question]:
    """Questions from columns that are named after the fields they fill; a missing one leaves the default."""
    found = {field: log.column(*column) for field, column in columns.items()}
    known = {field: values for field, values in found.items() if values is not None}
    sizes = {field: len(values) for field, values in known.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size} of {columns[field][0]}" for field, size in sizes.items())
        raise UsageError(f"{log.path}: all results on {name} must be of the same questions; found {said}.")
    rows = [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]
    return [_question(row, name) for row in rows]


def _question(row: Mapping[str, Any], name: str) -> Question:
    prompt, generation, response = row.get("text", ("", None, ""))
    answer = row.get("answer")
    return Question(
        prompt=prompt,
        response=response,
        answer=answer,
        paraphrase=row.get("paraphrase", answer if name in OPTIONS else None),
        perturbed=row.get("perturbed", ()),
        generation=generation,
        rouge_l=row.get("rouge_l"),
    )


def _from_task(log: _Log, name: str) -> list[Question]:
    """One set of the authors' log."""

    def losses(found: Any) -> tuple[Loss, ...]:
        return tuple(Loss(float(nll)) for nll in found)

    questions = _questions(
        log,
        {
            "text": ("generated_text", _text, None),
            "answer": ("avg_gt_loss", lambda found: Loss(float(found)), None),
            "paraphrase": ("avg_paraphrased_loss", lambda found: Loss(float(found)), None),
            "perturbed": ("average_perturb_loss", losses, None),
            "rouge_l": ("rougeL_recall", float, None),
        },
        name,
    )
    return _with_tokens(log, questions)


def _text(found: Any) -> tuple[str, str, str]:
    prompt, generation, response = found
    return str(prompt), str(generation), str(response)


def _with_tokens(log: _Log, questions: Sequence[Question]) -> list[Question]:
    fields = ("num_token_gt", "num_token_paraphrased", "num_token_perturb")
    columns = [log.column(field, lambda found: found) for field in fields]
    if any(column is None or len(column) != len(questions) for column in columns):
        return list(questions)
    rows = zip(questions, *(column or () for column in columns), strict=True)
    return [_counted(*row) for row in rows]


def _counted(question: Question, answer: int, paraphrase: int, perturbed: Sequence[int]) -> Question:
    wrong = zip(question.perturbed, perturbed, strict=False)
    return replace(
        question,
        answer=question.answer and Loss(question.answer.nll, answer),
        paraphrase=question.paraphrase and Loss(question.paraphrase.nll, paraphrase),
        perturbed=tuple(Loss(loss.nll, tokens) for loss, tokens in wrong),
    )


def _from_open_unlearning(log: _Log) -> Scores:
    values = "value_by_index"

    def score(found: Any) -> float:
        return float(found["score"])

    def attack(name: str) -> tuple[list[float], list[float]] | None:
        sides = [
            _Log(log.columns[name], log.path).column(side, lambda row: -float(row["score"]), values)
            for side in ("forget", "holdout")
        ]
        return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])

    questions = {name: _questions(log, _open_columns(prefix), name) for name, prefix in PREFIXES.items()}
    attacks = {ours: attack(theirs) for theirs, ours in ATTACKS.items() if theirs in log.columns}
    return Scores(
        questions={name: rows for name, rows in questions.items() if rows},
        extraction_strength=log.column("extraction_strength", score, values) or (),
        exact_memorization=log.column("exact_memorization", score, values) or (),
        attacks={name: sides for name, sides in attacks.items() if sides is not None},
    )


def _open_columns(prefix: str) -> dict[str, _Columns]:
    values = "value_by_index"

    def loss(found: Any) -> Loss:
        return Loss(float(found["avg_loss"]))

    def losses(found: Any) -> tuple[Loss, ...]:
        return tuple(Loss(float(nll)) for nll in found["avg_loss"])

    def text(found: Any) -> tuple[str, str, str]:
        return found["input"], found["generation"], found["ground_truth"]

    return {
        "text": (f"{prefix}_Q_A_ROUGE", text, values),
        "answer": (f"{prefix}_Q_A_Prob", loss, values),
        "paraphrase": (f"{prefix}_Q_A_PARA_Prob", loss, values),
        "perturbed": (f"{prefix}_Q_A_PERT_Prob", losses, values),
        "rouge_l": (f"{prefix}_Q_A_ROUGE", lambda found: float(found["rougeL_recall"]), values),
    }


# --- are two logs of the same questions?


def _check_same_questions(ours: Scores, theirs: Scores, path: Path, reference: Path) -> bool:
    """Refuse logs whose forget questions differ; False if there are no texts to compare."""
    mine, other = ours.questions.get("forget", ()), theirs.questions.get("forget", ())
    fix = "Name the log of the retain model on the same forget set and the same number of rows."
    if len(mine) != len(other):
        raise UsageError(
            f"Forget quality compares two models on the same questions. {path} has {len(mine)} forget rows, "
            f"{reference} has {len(other)}. {fix}"
        )
    _check_same_attack(ours, theirs, path, reference)
    if not (any(question.response for question in mine) and any(question.response for question in other)):
        return False
    for row, (one, two) in enumerate(zip(_texts(mine), _texts(other), strict=True)):
        if one != two:
            raise UsageError(
                f"Forget quality compares two models on the same questions. Forget row {row} of {path} is "
                f"another than that of {reference}. {fix}"
            )
    return True


def _check_same_attack(ours: Scores, theirs: Scores, path: Path, reference: Path) -> None:
    """Refuse membership scores, which privleak compares, of other numbers of records."""
    sizes = [[len(side) for side in of.attacks.get("min_k", ())] for of in (ours, theirs)]
    if all(sizes) and sizes[0] != sizes[1]:
        mine, other = (" and ".join(map(str, found)) for found in sizes)
        raise UsageError(
            f"Privleak compares two models on the same forget and holdout records. {path} has {mine}, "
            f"{reference} has {other}. Name the log of the retain model on the same sets."
        )


def _texts(questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Question and answer of each row, without what all questions have in common: the template."""
    prompts = [question.prompt for question in questions]
    head = _shared(prompts)
    tail = _shared([prompt[head:][::-1] for prompt in prompts])
    cores = [prompt[head : len(prompt) - tail] for prompt in prompts]
    return [(core, question.response.strip()) for core, question in zip(cores, questions, strict=True)]


def _shared(texts: Sequence[str]) -> int:
    """Length of the longest prefix of all texts: that of the first and the last in order."""
    pairs = zip(min(texts), max(texts), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, texts)))
