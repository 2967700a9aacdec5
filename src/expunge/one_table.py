"""What trials and comparisons must have in common to stand in one table: model, data, questions, code.

Models and data are told by what they hold: a model that has moved is loaded, to be hashed. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.alike import first_difference
from expunge.comparison_record import Comparison, TrialEntry
from expunge.errors import UsageError
from expunge.models import load_as
from expunge.record import ModelEntry
from expunge.weights import model_entry


def differing(one: Comparison, two: Comparison) -> str:
    """What two comparisons are not both of, as the command line calls it; empty where there is nothing.

    Data and models are told by what they hold: the same bytes may lie elsewhere by now.
    """
    held = [
        {name: entry.model_dump(exclude={"source"}) for name, entry in each.data.items()}
        for each in (one, two)
    ]
    same = {
        "BENCHMARK": one.benchmark == two.benchmark,
        "--option": one.options == two.options,
        "--reference": _same_model(one.control, one.control_model, two.control, two.control_model),
        "--model": _same_model(one.source, one.model, two.source, two.model),
        "data": held[0] == held[1],
    }
    return next((what for what, holds in same.items() if not holds), "")


def _same_model(
    one: str | None, first: ModelEntry | None, two: str | None, second: ModelEntry | None
) -> bool:
    """By the hash of the weights; by the place, where one of them has not been loaded yet."""
    if one is None or two is None:
        return one == two
    return first.sha256 == second.sha256 if first and second else _same_place(one, two)


def _same_place(one: str, two: str) -> bool:
    return one == two or Path(one).resolve() == Path(two).resolve()


def found_again(
    place: str | None, before: str | None, known: ModelEntry | None, device: torch.device, *, trust: bool
) -> ModelEntry | None:
    """A model as trials have recorded it, or, where it was another place then, as it is hashed now."""
    if place is None or before is None or known is None or _same_place(place, before):
        return known
    return model_entry(place, load_as(place, known.dtype, device=device, trust_remote_code=trust))


def check_asked(known: Sequence[TrialEntry], entry: TrialEntry, folder: Path) -> None:
    """What a comparison holds already, and what is asked of it now, can stand in one table."""
    if not (unlike := asked_otherwise(entry, known)):
        return
    what, before, now = unlike
    if what == "evaluation_seed":
        raise UsageError(
            f"--resume must begin --seeds with {before}, the seed of the evaluations in {folder}; got {now}."
        )
    raise UsageError(
        f"--resume must ask {entry.name} with the same settings; {what} was {before} in {folder} and is "
        f"{now} now. Give the same, another --output, or --overwrite."
    )


def asked_otherwise(entry: TrialEntry, others: Iterable[TrialEntry]) -> tuple[str, Any, Any] | None:
    """A setting in which a trial differs from others that it is compared with, their value and its own.

    All are evaluated with one seed; those of one method at one point of the grid share every setting, the
    defaults included (a name may have stood for something else when the others were asked), and all of one
    method the code of every file of the user's.
    """
    for other in others:
        if other.evaluation_seed != entry.evaluation_seed:
            return "evaluation_seed", other.evaluation_seed, entry.evaluation_seed
        same = (other.method, other.varied) == (entry.method, entry.varied)
        for name in sorted(other.code.keys() | entry.code.keys()) if other.method == entry.method else ():
            old, new = other.code.get(name, ""), entry.code.get(name, "")
            if old != new and (same or (old and new)):
                return f"the code of {name}", old[:12] or "unknown", new[:12] or "unknown"
        if other.name != entry.name and not same:
            continue
        pairs = [(other.fixed, entry.fixed), (other.varied, entry.varied)]
        if other.resolved and entry.resolved:  # not of comparisons that hold no defaults
            pairs.append((other.resolved, entry.resolved))
        for before, now in pairs:
            if found := first_difference(before, now):
                return found
    return None
