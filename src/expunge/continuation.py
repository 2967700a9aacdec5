"""What a run takes along besides its own sets: earlier requests' records, neighbours, the first model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from expunge.benchmarks.records import UserRecords
from expunge.chain import Chain
from expunge.errors import UsageError
from expunge.inference import model_context
from expunge.models import CausalModel, load_as
from expunge.neighbours import read_neighbours
from expunge.record import Evaluation
from expunge.records import Records
from expunge.runs import Run
from expunge.tables import examine
from expunge.unlearner import Unlearner
from expunge.weights import weights_hash


@dataclass
class Luggage:
    """Further sets of a run.

    Attributes:
        sets: Split -> records that are measured beside the run's own.
        companions: See `expunge.companions`.
        notes: What a reader of the record must know.
    """

    sets: dict[str, Records] = field(default_factory=dict)
    companions: dict[str, Records] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pack(sets: Mapping[str, Records], chain: Chain | None, neighbours: str | Path | None) -> Luggage:
    """What the run takes along; all of it is checked against the run's own sets.

    Raises:
        UsageError: A set that should be kept holds what an earlier request removed; the neighbours are not of
            this forget set.
    """
    found = Luggage()
    if chain is not None:
        found.notes += chain.check_sets(sets)
        found.sets |= chain.earlier
        found.companions["forgotten"] = chain.forgotten
    if neighbours is not None:
        near = read_neighbours(Path(neighbours), sets)
        found.companions["curriculum"] = near.curriculum
        found.sets |= {"neighbours": near.probes} if near.probes else {}
        found.notes += near.notes
    return found


def account(run: Run, unlearner: Unlearner, tokenizer: PreTrainedTokenizerBase) -> None:
    """Measure the model before the first request: what is lost of retain is counted from there.

    Raises:
        UsageError: That model cannot be read, or is not the one that the first record names.
    """
    if run.chain is None:
        return
    kept = {name: found for name, found in run.sets.items() if name in ("retain", "neighbours")}
    measured = bool(kept) and run.options.evaluate
    if not (measured or unlearner.monitor.probe):
        return
    with run.timed("account"), run.options.reporter.phase("Measuring the first model", 1):
        first = _first_model(run, run.chain)
        unlearner.monitor.anchor(first)
        if measured:
            run.first_evaluation = _measure(run, first, tokenizer, kept)


def _first_model(run: Run, chain: Chain) -> CausalModel:
    given = run.options.original
    if given is not None and not isinstance(given, str | Path):
        first: CausalModel = given  # type: ignore[assignment]
        source = "The model given as `original`"
    else:
        source = str(given or chain.first.source)
        try:
            trust, device = run.options.trust_remote_code, run.args.device
            first = load_as(source, chain.first.dtype, device=device, trust_remote_code=trust)
        except UsageError as error:
            raise UsageError(
                "The model before the first request must be readable, since utility is accounted against it: "
                f"{error} Say where it lies now by --original."
            ) from None
    chain.check_first(weights_hash(first), source)
    first.to(run.args.device)  # type: ignore[arg-type]
    return first


def _measure(
    run: Run, model: CausalModel, tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, Records]
) -> Evaluation:
    benchmark = UserRecords(sets, run.args.encoding, swap_seed=run.evaluation_seed)
    parts = benchmark.parts(tokenizer, model_context(model))
    tables = examine(model, tokenizer, parts, precision=run.args.precision, cache=run.options.cache)
    found = benchmark.measure(tables, None, run.evaluation_seed)
    return Evaluation(
        splits={split: dict(metrics) for split, metrics in found.splits.items()},
        seconds=tables.seconds,
        scored_tokens=tables.scored_tokens,
        generated_tokens=tables.generated_tokens,
    )
