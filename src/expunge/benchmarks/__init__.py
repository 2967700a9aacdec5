"""Data, metrics and the reference that a number needs, one benchmark per module, here by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from expunge.errors import UsageError

if TYPE_CHECKING:
    from expunge.benchmarks.benchmark import Benchmark


@dataclass(frozen=True)
class Entry:
    """A benchmark that is imported when it is first used.

    Args:
        module: In this package; has `load(data, **options)` and `METRICS`.
        line: What it measures.
        fixed: Options of `load` that the name stands for.
    """

    module: str
    line: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, data: Path, **options: Any) -> Benchmark:
        """Read the benchmark.

        Raises:
            UsageError: An option is unknown or of another type; from `load`, about the data.
        """
        known = self.options
        for name in options:
            if name not in known:
                raise UsageError(
                    f"--option must be one of {', '.join(known) or 'none'} for this benchmark; got {name!r}."
                )
        try:
            benchmark: Benchmark = self._module.load(data, **options, **self.fixed)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--option was refused: {error}") from error
        return benchmark

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that a user may set."""
        names = list(inspect.signature(self._module.load).parameters)[1:]
        return tuple(name for name in names if name not in self.fixed)

    @property
    def metrics(self) -> Mapping[str, str]:
        """Metric -> one line."""
        found: Mapping[str, str] = self._module.METRICS
        return found

    @property
    def _module(self) -> ModuleType:
        return import_module(f"{__name__}.{self.module}")


BENCHMARKS = {
    "tofu": Entry(
        "tofu", "Fictitious authors: model utility, forget quality, membership (arXiv 2401.06121)."
    ),
    "lume": Entry("lume", "LUME, SemEval-2025 Task 4: novels, personal data, biographies; final score."),
    "muse-news": Entry(
        "muse", "MUSE on news: verbatim and knowledge memory, privacy leak.", {"corpus": "news"}
    ),
    "muse-books": Entry("muse", "The same on books.", {"corpus": "books"}),
    "mmlu": Entry("mmlu", "General knowledge, four options, from local rows."),
    "safety": Entry("safety", "Harmful questions in the form of PKU-SafeRLHF: harmful rate, fluency."),
}

"""Name -> what reads it; `records`, the user's own sets, needs no reading: see `records.UserRecords`."""

HARNESS = {
    "mmlu": "The same through the LM Evaluation Harness, without --data.",
    "wmdp": "Hazardous knowledge (biology, cyber, chemistry) through the LM Evaluation Harness.",
}
"""Benchmarks that lm-eval runs, where it is installed: name -> line; see `harness`."""
