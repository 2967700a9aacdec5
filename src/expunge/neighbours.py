"""Contrastive neighbours: what a model takes for the records to forget, kept with care and probed for loss.

Forgetting a record easily takes its like along. This finds, for each forget record, the retained records that
the model confuses with it, writes questions that tell the two apart, and leaves them in a folder that
`expunge run --neighbours` trains on, nearest first, and measures.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from transformers import PreTrainedTokenizerBase

from expunge import contrast, output
from expunge.collate import Encoding
from expunge.contrast import CONTRAST, GENERATED, TEMPLATES, Draft
from expunge.derived import Means
from expunge.environment import installed
from expunge.errors import UsageError
from expunge.factories import nearest
from expunge.locks import exclusive
from expunge.material import means_of
from expunge.mining import Pair, Reader, mine
from expunge.models import ModelSource, load_model, load_tokenizer
from expunge.progress import Reporter, Silent
from expunge.record import DataEntry, Entry, ModelEntry, faults, write_atomically
from expunge.records import Record, Records, check_disjoint, read_records
from expunge.run_options import RunOptions
from expunge.runs import data_entry
from expunge.settings import arguments
from expunge.weights import model_entry

RECORD, CURRICULUM, PROBES, RETAIN = "neighbours.json", "neighbours.jsonl", "probes.jsonl", "retain.jsonl"


@dataclass(frozen=True)
class NeighbourOptions:
    """How neighbours are sought, and what is written about them.

    Args:
        k: Neighbours per forget record.
        pool: Candidates per record whose likelihoods are compared; None is four times `k`, at least 16.
        margin: How much likelier the model must find the right answer than the wrong one, before unlearning,
            for a question to be kept: nats per token.
        probes: Share of the neighbours that are measured only: no question about them is trained on.
        templates: Names of `contrast.TEMPLATES`: the kinds of question that are asked.
        curriculum: Those of them that are trained on, where a neighbour is not measured. None: `direct` and
            what a generator writes; other forms teach their form, at the cost of the neighbours themselves
            (docs/neighbours.md), and are taken where only they are asked.
        generator: A model that writes a question about each pair besides; None: templates alone.
        seed: Of what the generator samples.
        template: As in training.
        overwrite: Replace an earlier folder.
        trust_remote_code: Let a model run code of its own.
        prompt_field: Name of the prompt in the data.
        response_field: Name of the response in the data.
        reporter: Is told of every phase.
    """

    k: int = 3
    pool: int | None = None
    margin: float = 0.2
    probes: float = 0.5
    templates: Sequence[str] = tuple(TEMPLATES)
    curriculum: Sequence[str] | None = None
    generator: str | Path | None = None
    seed: int = 0
    template: Literal["auto", "chat", "none"] = "auto"
    overwrite: bool = False
    trust_remote_code: bool = False
    prompt_field: str | None = None
    response_field: str | None = None
    reporter: Reporter = field(default_factory=Silent)

    def check(self, retain: int) -> None:
        """Refuse what cannot be done with so many retain rows.

        Raises:
            UsageError: A value is out of range, or a template unknown.
        """
        if self.k < 1:
            raise UsageError(f"--k must be at least 1 neighbour; got {self.k}. Leave it out for 3.")
        if self.k > retain:
            raise UsageError(
                f"--k must be at most the number of retain rows ({retain}); got {self.k}. "
                "Give more retain records, or a smaller --k."
            )
        if self.pool is not None and self.pool < self.k:
            raise UsageError(f"--pool must be at least --k ({self.k}); got {self.pool}.")
        if not self.margin >= 0:
            raise UsageError(f"--margin must be at least 0 nats per token; got {self.margin}.")
        if not 0 <= self.probes < 1:
            raise UsageError(f"--probes must be a share from 0 to below 1; got {self.probes}.")
        known = {"templates": [*TEMPLATES], "curriculum": [*TEMPLATES, GENERATED]}
        for flag, names in known.items():
            for name in getattr(self, flag) or ():
                if name not in names:
                    raise UsageError(
                        f"--{flag} must be some of {', '.join(names)}; got {name!r}. {nearest(name, names)}"
                    )
        if not (self.templates or self.generator):
            raise UsageError("--templates must name at least one template when there is no --generator.")
        if not self.lessons:
            raise UsageError(
                f"--curriculum must name some of the questions that are asked ({', '.join(self.asked)}); "
                f"got {', '.join(self.curriculum or ()) or 'none'}. Name one of them, or more --templates."
            )

    @property
    def asked(self) -> list[str]:
        """Kinds of question."""
        return [*self.templates, *([GENERATED] if self.generator else [])]

    @property
    def lessons(self) -> list[str]:
        """Those that are trained on."""
        if self.curriculum is not None:
            return [name for name in self.asked if name in self.curriculum]
        return [name for name in self.asked if name in ("direct", GENERATED)] or self.asked

    @property
    def candidates(self) -> int:
        """Candidates per record."""
        return self.pool or max(4 * self.k, 16)


class NeighboursRecord(Entry):
    """What `expunge neighbours` did, in `neighbours.json`."""

    schema_version: Literal[1] = 1
    expunge_version: str
    created: str = Field(description="ISO 8601, UTC")
    settings: dict[str, Any]
    model: ModelEntry
    generator: ModelEntry | None = None
    forget: DataEntry
    retain: DataEntry
    pairs: int = Field(description="neighbours found, over all forget records")
    without: int = Field(description="forget records of which no question could be kept")
    drafted: dict[str, int] = Field(description="template -> questions written")
    kept: dict[str, int] = Field(description="template -> questions that the model can answer")
    curriculum: int = Field(description="rows to train on")
    probes: int = Field(description="rows to measure")
    left_out: int = Field(0, description="questions kept that are neither: of no kind that is trained on")
    probed_records: list[int] = Field(description="rows of retain, from 0, that the probes are about")
    seconds: float


@dataclass(frozen=True)
class Near:
    """Neighbours as a run takes them.

    Attributes:
        curriculum: Rows to keep, nearest first.
        probes: Rows to measure; None where there are none.
        notes: What a reader of the run's record must know.
    """

    curriculum: Records
    probes: Records | None
    notes: tuple[str, ...] = ()


@exclusive
def find_neighbours(
    model: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    forget: str | Path | Iterable[Any],
    retain: str | Path | Iterable[Any] | None,
    output_folder: Path,
    **options: Any,
) -> NeighboursRecord:
    """Find neighbours of the forget records among the retained ones, and write questions about them.

    The folder receives `neighbours.jsonl` (rows to train on, nearest first), `probes.jsonl` (rows to
    measure), `retain.jsonl` (the retain records that no probe is about) and `neighbours.json`.

    Args:
        model: The model before unlearning: a local folder, a Hub id, `smollm2-135m`, or one in memory.
        tokenizer: Needed with a model in memory.
        forget: Records to forget.
        retain: Records to keep.
        output_folder: Must be new or empty, unless `overwrite` is given.
        **options: See `NeighbourOptions`.

    Raises:
        UsageError: Data, model or options cannot be used, or the model can answer none of the questions.
    """
    chosen = NeighbourOptions(**options)
    sets = _read(forget, retain, chosen)
    chosen.check(len(sets["retain"]))
    inputs = [Path(item) for item in (model, forget, retain) if isinstance(item, str | Path)]
    folder = output.claim(output_folder, overwrite=chosen.overwrite, inputs=inputs)
    started = time.perf_counter()
    reader, means, entry = _load(model, tokenizer, chosen)
    with chosen.reporter.phase("Finding neighbours", 3) as advance:
        pairs = mine(reader, sets["forget"], sets["retain"], chosen.k, chosen.candidates)
        advance(1, "")
        written, generator = _generated(pairs, sets, chosen)
        drafts = contrast.from_templates(pairs, sets["forget"], sets["retain"], chosen.templates) + written
        drafts.sort(key=lambda draft: -draft.pair.nearness)
        advance(2, "")
        kept = contrast.discriminable(drafts, reader, means, chosen.margin)
        advance(3, "")
    probed = _probed(kept, chosen.probes)
    rows = _sides(kept, probed, sets["retain"], chosen)
    record = NeighboursRecord(
        expunge_version=installed("expunge") or "0",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=_settings(chosen),
        model=entry,
        generator=generator,
        forget=data_entry(sets["forget"]),
        retain=data_entry(sets["retain"]),
        **_counts(pairs, drafts, kept, len(sets["forget"])),
        curriculum=len(rows[CURRICULUM]),
        probes=len(rows[PROBES]),
        left_out=len(kept) - len(rows[CURRICULUM]) - len(rows[PROBES]),
        probed_records=sorted(probed),
        seconds=round(time.perf_counter() - started, 3),
    )
    _write(folder, record, rows, sets["retain"], chosen.overwrite)
    return record


def read_neighbours(folder: Path, sets: Mapping[str, Records]) -> Near:
    """What `find_neighbours` left in a folder, for a run on these sets.

    Raises:
        UsageError: It is no such folder, is of other forget records, or a row of it should be forgotten.
    """
    file = folder / RECORD
    try:
        record = NeighboursRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"--neighbours must name a folder that expunge neighbours wrote; {folder} has no {RECORD}."
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        why = faults(error) if isinstance(error, ValidationError) else error
        raise UsageError(f"{file} must be a record of neighbours; it is not: {why}") from None
    if "forget" not in sets or record.forget.sha256 != sets["forget"].sha256:
        raise UsageError(
            f"--neighbours must be of this run's forget records; {folder} is of {record.forget.source} with "
            "another hash. Run expunge neighbours again."
        )
    curriculum = read_records(folder / CURRICULUM, name="curriculum")
    probes = read_records(folder / PROBES, name="neighbours") if record.probes else None
    for rows in (curriculum, probes):
        if rows:
            check_disjoint(sets["forget"], rows)
    return Near(curriculum, probes, _notes(probes, sets.get("retain")))


def _notes(probes: Records | None, retain: Records | None) -> tuple[str, ...]:
    kept = {(row.prompt, row.response) for row in retain or ()}
    shared = sum((row.prompt, row.response) in kept for row in probes or ())
    if not shared:
        return ()
    return (
        f"{shared} of {len(probes or ())} neighbours that are measured stand in retain, too, and are trained "
        f"on. The {RETAIN} beside them leaves them out.",
    )


def _read(forget: Any, retain: Any, options: NeighbourOptions) -> dict[str, Records]:
    if retain is None:
        raise UsageError("Neighbours are retained records; none are given. Give --retain FILE.")
    sets = {
        name: read_records(
            data, name=name, prompt_field=options.prompt_field, response_field=options.response_field
        )
        for name, data in (("forget", forget), ("retain", retain))
    }
    check_disjoint(sets["forget"], sets["retain"])
    return sets


def _load(
    model: ModelSource, tokenizer: PreTrainedTokenizerBase | None, options: NeighbourOptions
) -> tuple[Reader, Means, ModelEntry]:
    """A model, how it reads records, and what it makes texts with."""
    settings = {"seed": options.seed, "template": options.template}
    args = arguments(settings, RunOptions())
    if isinstance(model, str | Path):
        trust = options.trust_remote_code
        tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=trust)
        loaded, source = load_model(model, trust_remote_code=trust), str(model)
    elif tokenizer is None:
        raise ValueError("`tokenizer` must be given with a model in memory; got None.")
    else:
        loaded, source = model, type(model).__name__  # type: ignore[assignment]
    loaded.to(args.device)  # type: ignore[arg-type]
    means = means_of(loaded, tokenizer, args)
    encoding = Encoding(options.template, means.limit)
    batch = 4096 if args.device.type == "cpu" else 32_768
    return Reader(loaded, tokenizer, encoding, args.precision, batch), means, model_entry(source, loaded)


def _generated(
    pairs: Sequence[Pair], sets: Mapping[str, Records], options: NeighbourOptions
) -> tuple[list[Draft], ModelEntry | None]:
    if options.generator is None:
        return [], None
    _, means, entry = _load(options.generator, None, options)
    return contrast.from_generator(pairs, sets["forget"], sets["retain"], means), entry


def _probed(kept: Sequence[tuple[Draft, float]], share: float) -> set[int]:
    """Retain rows to measure: every so many, from nearest to farthest, so that both sides have all kinds."""
    rows = list(dict.fromkeys(draft.pair.retain for draft, _ in kept))
    return {row for i, row in enumerate(rows) if int((i + 1) * share) > int(i * share)}


def _sides(
    kept: Sequence[tuple[Draft, float]], probed: set[int], retain: Records, options: NeighbourOptions
) -> dict[str, list[dict[str, Any]]]:
    """Rows to train on and rows to measure.

    Raises:
        UsageError: There is nothing to train on.
    """
    rows: dict[str, list[dict[str, Any]]] = {CURRICULUM: [], PROBES: []}
    for draft, margin in kept:
        if draft.pair.retain in probed:
            rows[PROBES].append(_row(draft, margin, retain))
        elif draft.template in options.lessons:
            rows[CURRICULUM].append(_row(draft, margin, retain))
    if not rows[CURRICULUM]:
        raise UsageError(
            f"No question of --curriculum tells a neighbour apart by {options.margin:g} nats per token: the "
            "model does not know these records well enough. Give a smaller --margin, a larger --k, fewer "
            "--probes, or more kinds of question in --curriculum."
        )
    return rows


def _counts(
    pairs: Sequence[Pair], drafts: Sequence[Draft], kept: Sequence[tuple[Draft, float]], forget: int
) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "without": forget - len({draft.pair.forget for draft, _ in kept}),
        "drafted": dict(Counter(draft.template for draft in drafts)),
        "kept": dict(Counter(draft.template for draft, _ in kept)),
    }


def _settings(options: NeighbourOptions) -> dict[str, Any]:
    names = ("k", "margin", "probes", "seed", "template")
    generator = str(options.generator) if options.generator else None
    more = {
        "pool": options.candidates,
        "templates": list(options.templates),
        "curriculum": options.lessons,
        "generator": generator,
    }
    return {name: getattr(options, name) for name in names} | more


def _write(
    folder: Path,
    record: NeighboursRecord,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    retain: Records,
    overwrite: bool,
) -> None:
    """The record last: a folder without it is not read."""
    if overwrite:
        output.clear(folder)
    for name, found in rows.items():
        if found:
            _write_rows(folder / name, found)
    left = [row for i, row in enumerate(retain) if i not in set(record.probed_records)]
    if left:
        _write_rows(folder / RETAIN, [_plain(row) for row in left])
    write_atomically(folder / RECORD, record.model_dump_json(indent=1) + "\n")


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_atomically(path, "".join(lines))


def _plain(row: Record) -> dict[str, Any]:
    return {**row.metadata, "prompt": row.prompt, "response": row.response}


def _row(draft: Draft, margin: float, retain: Records) -> dict[str, Any]:
    """A question as a row: the retained record's metadata, and where it came from."""
    pair = draft.pair
    origin = {
        "prompt": draft.prompt,
        "response": draft.right,
        CONTRAST: draft.wrong,
        "template": draft.template,
        "forget_row": pair.forget,
        "retain_row": pair.retain,
        "nearness": round(pair.nearness, 6),
        "margin": round(margin, 6),
    }
    return {**retain[pair.retain].metadata, **origin}
