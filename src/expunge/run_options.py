"""What a verb is asked besides settings of the training, and its claim on the output folder.

Knows names and values; runs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from expunge import output, ranks
from expunge.benchmarks.benchmark import Benchmark
from expunge.benchmarks.harness import Harness
from expunge.errors import UsageError
from expunge.factories import typed
from expunge.models import ModelSource
from expunge.progress import Reporter, Silent

Kind = Literal["run", "finetune", "evaluate", "demo"]


Verb = TypeVar("Verb", bound="VerbOptions")


@dataclass(frozen=True)
class VerbOptions:
    """Options of a verb, which come in one mapping with the settings of what it runs."""

    @classmethod
    def take(cls: type[Verb], settings: Mapping[str, Any]) -> tuple[Verb, dict[str, Any]]:
        """Split options of the verb, numbers and switches as their types say, from the rest.

        Raises:
            UsageError: One of them is refused.
        """
        hints = get_type_hints(cls)
        names = {field.name for field in dataclasses.fields(cls)}
        plain = {n for n in names if {*(get_args(hints[n]) or (hints[n],))} <= {bool, int, float, NoneType}}
        mine = {k: typed(k, v, hints[k]) if k in plain else v for k, v in settings.items() if k in names}
        return cls(**mine), {k: v for k, v in settings.items() if k not in names}


TARGET_LOSS = 0.02
"""Where `finetune` stops, nats per token."""


@dataclass(frozen=True)
class RunOptions(VerbOptions):
    """Options of a verb that are not settings of the training.

    Args:
        output: Folder for `model/`, `record.json`, `report.html`; None writes nothing.
        resume: Continue the interrupted run in `output`.
        overwrite: Replace an earlier run in `output`.
        claimed: The caller has claimed `output` already and may have put files there.
        evaluate: Measure before and after.
        evaluation_seed: Seed of the evaluation; None is the run's own.
        control: A model that never saw the forget records, measured as well.
        benchmark: What measures the models; None: the sets themselves.
        after: Folder of an earlier run to continue: its model, with its forget records kept forgotten.
        forgotten: Where the forget sets of earlier requests lie now, in their order; by default where their
            records name them.
        original: With `after`: where the model before the first request lies now.
        neighbours: Folder that `expunge neighbours` wrote: rows to keep with care, and probes.
        prompt_field: Name of the prompt in the data; None finds the usual names.
        response_field: Name of the response in the data.
        redact: Record and page hold no text of any record, nor what a model wrote.
        trust_remote_code: Let a model run code of its own.
        target_loss: `finetune` alone: it stops when the loss of one pass is below this, nats per token;
            None: `TARGET_LOSS`.
        kind: The verb in the record.
        cache: Folder that keeps what models said, so that the same question is not asked twice.
        source: What the record calls a model that was given in memory.
        notes: What a reader of the record must know beforehand.
        reporter: Is told of every phase.
    """

    output: str | Path | None = None
    resume: bool = False
    overwrite: bool = False
    claimed: bool = False
    evaluate: bool = True
    evaluation_seed: int | None = None
    control: ModelSource | None = None
    benchmark: Benchmark | Harness | None = None
    after: str | Path | None = None
    forgotten: Sequence[Any] = ()
    original: ModelSource | None = None
    neighbours: str | Path | None = None
    prompt_field: str | None = None
    response_field: str | None = None
    redact: bool = False
    trust_remote_code: bool = False
    target_loss: float | None = None
    kind: Kind = "run"
    cache: Path | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()
    reporter: Reporter = field(default_factory=Silent)

    @property
    def target(self) -> float:
        """Where `finetune` stops."""
        return TARGET_LOSS if self.target_loss is None else self.target_loss

    def __post_init__(self) -> None:
        if self.target_loss is None:
            return
        if self.kind != "finetune":
            raise UsageError("`target_loss` belongs to finetune. Leave it out.")
        if not self.target_loss > 0:
            raise UsageError(f"`target_loss` must be positive; got {self.target_loss}.")


def claim(options: RunOptions, inputs: Iterable[object] = ()) -> Path | None:
    """The output folder, made ready but not cleared; None where nothing is written.

    Args:
        options: Options of the verb.
        inputs: What the run reads; those that are paths must not be overwritten.
    """
    if options.output is None:
        return None
    if options.claimed:
        return Path(options.output)
    paths = [Path(item) for item in inputs if isinstance(item, str | Path)]
    folder = Path(options.output)
    return ranks.decided(
        lambda: output.claim(folder, resume=options.resume, overwrite=options.overwrite, inputs=paths)
    )
