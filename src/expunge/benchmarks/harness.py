"""MMLU and WMDP as the LM Evaluation Harness runs them, where it is installed.

The harness brings its own data, prompts and passes; what comes back are its per-question results, so that the
intervals here are those of every other benchmark. WMDP (hazardous knowledge: biology, cyber, chemistry) is
forgotten when accuracy falls to the 0.25 of chance.

Reference:
    Gao et al., lm-evaluation-harness; Li et al. (2024), WMDP, arXiv 2403.03218.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge import intervals
from expunge.benchmarks.benchmark import Measured
from expunge.errors import UsageError
from expunge.record import Metric
from expunge.records import Records
from expunge.tables import Part

TASKS: Mapping[str, tuple[str, ...]] = {
    "mmlu": ("mmlu",),
    "wmdp": ("wmdp_bio", "wmdp_cyber", "wmdp_chem"),
}
"""Benchmark -> the harness's tasks."""

METRICS: Mapping[str, str] = {
    "accuracy": "Share of questions whose right option the harness finds likeliest; 0.25 is chance.",
}


@dataclass(frozen=True)
class Harness:
    """A benchmark that the harness runs whole: it asks a model itself instead of naming parts.

    Args:
        name: A key of `TASKS`.
        shots: As in `evaluate`.
        rows: As in `evaluate`.
        batch_size: As in `evaluate`.
    """

    name: str
    shots: int | None = None
    rows: int | None = None
    batch_size: int = 8

    @property
    def sets(self) -> Mapping[str, Records]:
        """None: the harness reads its data itself."""
        return {}

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Mapping[str, Part]:
        """None: the harness asks the model itself."""
        return {}

    def ask(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, seed: int) -> Measured:
        """Run the harness on one model; see `evaluate`."""
        return evaluate(
            model,
            tokenizer,
            self.name,
            shots=self.shots,
            rows=self.rows,
            batch_size=self.batch_size,
            seed=seed,
        )


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: str,
    *,
    shots: int | None = None,
    rows: int | None = None,
    batch_size: int | str = 8,
    seed: int = 0,
) -> Measured:
    """Run the harness on a model in memory.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        benchmark: A key of `TASKS`.
        shots: Worked examples per question; None: as each task states.
        rows: Questions per task at most, the first ones; None: all.
        batch_size: Of the harness's passes; "auto" lets it choose.
        seed: Of the intervals.

    Raises:
        UsageError: The harness is not installed, or cannot run the tasks (it fetches data from the Hub).
        ValueError: `benchmark` is not a key of `TASKS`.
    """
    if benchmark not in TASKS:
        raise ValueError(f"`benchmark` must be one of {', '.join(TASKS)}; got {benchmark!r}.")
    run, wrapper = _harness(benchmark)
    try:
        found = run(
            model=wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(TASKS[benchmark]),
            num_fewshot=shots,
            limit=rows,
            bootstrap_iters=0,
            log_samples=True,
        )
    except Exception as error:
        why = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        fix = "Check the connection to the Hub, or that the data set is in the local cache."
        raise UsageError(f"lm_eval must be able to run {benchmark}; it says: {why}. {fix}") from error
    return _measured(benchmark, found["samples"], shots, rows, seed)


def _harness(benchmark: str) -> tuple[Any, Any]:
    try:
        evaluator: Any = importlib.import_module("lm_eval.evaluator")
        models: Any = importlib.import_module("lm_eval.models.huggingface")
    except ImportError as error:
        raise UsageError(
            f"{benchmark} through the harness needs the package lm_eval, which cannot be imported ({error}). "
            "Install it: pip install 'expunge[lm-eval]'."
        ) from None
    return evaluator.simple_evaluate, models.HFLM


def _measured(
    benchmark: str,
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    shots: int | None,
    rows: int | None,
    seed: int,
) -> Measured:
    flags = {task: [float(sample["acc"]) for sample in found] for task, found in samples.items() if found}
    splits: dict[str, dict[str, Metric]] = {
        task: {"accuracy": intervals.share(values, seed=seed)} for task, values in sorted(flags.items())
    }
    splits["all"] = {
        "accuracy": intervals.share([flag for task in flags.values() for flag in task], seed=seed)
    }
    how = "as many shots as each task states" if shots is None else f"{shots} shots"
    which = "all questions" if rows is None else f"the first {rows} questions of each task"
    return Measured(splits, {}, (f"{benchmark}: by lm_eval, {how}, {which}.",))
