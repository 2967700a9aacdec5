"""What is known of every label token before training: log-probability, selectors' choices, generic label.

Computed once, at the start of the run, in one scored pass shared by the ranks; saved with every checkpoint,
so that a resumed run neither repeats the pass nor depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch import nn

from expunge import tables
from expunge.collate import Encoded, batches_by_tokens, collate
from expunge.inference import evaluating
from expunge.methods import Method
from expunge.models import load_model
from expunge.objectives import GenericLabels
from expunge.observation import REFERENCE, generic_labels, selection, token_logits
from expunge.ranks import sharded
from expunge.references import cached_sources
from expunge.selectors import Responses, select

FACTS_FILE = "expunge_facts.safetensors"

LABELLED_TOKENS = 1024
"""Tokens per batch of which two models' logits stand side by side."""

Part = list[npt.NDArray[Any]]


@dataclass
class TokenFacts:
    """Data set -> key -> one array over the label tokens of each row."""

    values: dict[str, dict[str, Part]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write them beside a checkpoint, whole or not at all; nothing where there are none."""
        flat = {
            f"{n}|{key}": np.concatenate(rows)
            for n, facts in self.values.items()
            for key, rows in facts.items()
        }
        if flat:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(flat, folder / f".{FACTS_FILE}")
            (folder / f".{FACTS_FILE}").replace(folder / FACTS_FILE)

    @classmethod
    def load(cls, folder: Path, encoded: Mapping[str, Sequence[Encoded]]) -> TokenFacts | None:
        """Those of a checkpoint; None where it has none.

        Raises:
            ValueError: They are of other rows.
        """
        if not (folder / FACTS_FILE).is_file():
            return None
        values: dict[str, dict[str, Part]] = {}
        for label, flat in load_file(folder / FACTS_FILE).items():
            name, _, key = label.partition("|")
            ends = np.cumsum([0, *(len(row.labels) for row in encoded.get(name, ()))])
            if ends[-1] != len(flat):
                raise ValueError(
                    "`resume_from_checkpoint` must be a checkpoint of the same data, method and settings; "
                    f"{folder} knows {len(flat)} tokens of {name!r}, this run has {ends[-1]}."
                )
            values.setdefault(name, {})[key] = np.split(flat, ends[1:-1])
        return cls(values)


@dataclass(frozen=True)
class Ranks:
    """How ranks share the rows: which one this is, of how many, and how lists of all are joined in order."""

    index: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = lambda found: found


def needs_facts(method: Method) -> bool:
    """Whether an objective reads what is computed here."""
    return bool(cached_sources(method)) or any(o.needs.selector or o.needs.generic for o in method.objectives)


def compute_facts(
    method: Method,
    encoded: Mapping[str, Sequence[Encoded]],
    means: Responses,
    ranks: Ranks,
    cache: Path | None = None,
) -> TokenFacts:
    """What the objectives of a method ask to know of their tokens.

    Args:
        method: Its objectives say what they need.
        encoded: Data set -> rows.
        means: Model and tokenizer at the start of the run; its own rows are not read.
        ranks: Every rank runs selectors on its share of the rows.
        cache: Folder of earlier results (see `table_cache`): another run on the same model and rows takes
            their log-probabilities from there.
    """
    if sharded(means.model):
        ranks = Ranks()  # every pass takes all processes: each goes through all rows
    facts = TokenFacts()
    for name, found in _log_probs({n: encoded[n] for n in cached_sources(method)}, means, cache).items():
        facts.values.setdefault(name, {})[REFERENCE] = found
    for objective in method.objectives:
        name, rule, generic = objective.source, objective.needs.selector, objective.needs.generic
        if rule is not None:
            _enter(facts, name, selection(rule), encoded[name], _chooser(rule, means), ranks)
        if generic is not None:
            _enter(facts, name, generic_labels(generic), encoded[name], _labeller(generic, means), ranks)
    return facts


def _enter(
    facts: TokenFacts,
    name: str,
    key: str,
    rows: Sequence[Encoded],
    rule: Callable[[Sequence[Encoded]], Part],
    ranks: Ranks,
) -> None:
    """Let every rank treat a contiguous share of the rows, and join the shares."""
    if key in facts.values.get(name, {}):
        return
    mine = np.array_split(np.arange(len(rows)), ranks.count)[ranks.index]
    found = rule([rows[i] for i in mine]) if len(mine) else []
    facts.values.setdefault(name, {})[key] = list(ranks.gather(found))


def _log_probs(
    rows: Mapping[str, Sequence[Encoded]], means: Responses, cache: Path | None
) -> dict[str, Part]:
    """Of the targets under the reference, in one scored pass that divides its rows among ranks by itself."""
    if not rows:
        return {}
    dtype = np.float64 if any(p.dtype == torch.float64 for p in means.model.parameters()) else np.float32
    parts = {name: tables.Part(found) for name, found in rows.items()}
    asked = tables.examine(means.model, means.tokenizer, parts, precision=means.precision, cache=cache)
    return {name: [s.log_probs.astype(dtype) for s in table.scores] for name, table in asked.items()}


def _chooser(rule: str, means: Responses) -> Callable[[Sequence[Encoded]], Part]:
    def choose(rows: Sequence[Encoded]) -> Part:
        return list(
            select(rule, Responses(rows, means.tokenizer, means.model, means.pad_id, means.precision))
        )

    return choose


def _labeller(rule: GenericLabels, means: Responses) -> Callable[[Sequence[Encoded]], Part]:
    def label(rows: Sequence[Encoded]) -> Part:
        other = load_model(rule.model) if rule.model else None
        if other is not None:
            other.to(next(means.model.parameters()).device)  # type: ignore[arg-type]
        found: dict[int, npt.NDArray[Any]] = {}
        for batch in batches_by_tokens([len(row.input_ids) for row in rows], LABELLED_TOKENS):
            chosen = [rows[i] for i in batch]
            scores = _logits(means.model, chosen, means.pad_id)
            if other is None:
                targets = torch.tensor([y for row in chosen for y in row.labels], device=scores.device)
                scores = scores.scatter(1, targets[:, None], -math.inf)
            else:
                scores = scores - rule.alpha * F.relu(_logits(other, chosen, means.pad_id) - scores)
            generic = scores.argmax(1).cpu().numpy()
            ends = np.cumsum([len(row.labels) for row in chosen])
            found |= dict(zip(batch, np.split(generic, ends[:-1]), strict=True))
        return [found[i] for i in range(len(rows))]

    return label


def _logits(model: nn.Module, rows: Sequence[Encoded], pad_id: int) -> torch.Tensor:
    """At the label positions of some rows, in their order, [k, v].

    In fp32 whatever the run computes in: a difference of two models' logits, times α, would be rounding.
    """
    with evaluating(model, "fp32") as device:
        batch = {name: value.to(device) for name, value in collate(rows, pad_id).items()}
        return token_logits(model, batch).scores
