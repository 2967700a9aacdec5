"""What a model makes of parts of a data set: all of them in one scored pass and one generation pass.

Knows encoded rows and the two passes; knows no metric and no benchmark. Metrics are pure functions of the
tables that `examine` returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded
from expunge.generation import Generation, Guarded, generate
from expunge.gradients import gradient_norms
from expunge.inference import Precision, Progress, cache_bytes
from expunge.prefixes import Prefixes
from expunge.scoring import TokenScores, score

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one kind, and what is asked of a model about them.

    Attributes:
        rows: Prompt and response; the labels are everything from `prompt_length` on.
        scored: Token scores of the response.
        new_tokens: Greedy tokens per answer; 0: no answer; None: 16 more than the row's own response has.
        moments: With the scores, mean and deviation of the log-probabilities at every response position.
        gradients: Norm of the gradient of the row's mean NLL with respect to all parameters.
    """

    rows: Sequence[Encoded]
    scored: bool = True
    new_tokens: int | None = 0
    moments: bool = False
    gradients: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """What one model made of one part, in the order of its rows; an empty list is what was not asked.

    Attributes:
        scores: Of each response.
        generations: The answers.
        gradient_norms: Of each row.
        cut: Row -> what is left of its response, where the row does not end in a special token.
    """

    scores: list[TokenScores]
    generations: list[Generation]
    gradient_norms: list[float]
    cut: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tables(Mapping[str, Table]):
    """Part -> table, and what they cost.

    Attributes:
        parts: The tables.
        seconds: Wall time of all passes.
        scored_tokens: Real tokens of all scored rows, prompts included.
        generated_tokens: Tokens of all answers.
        stages: "scoring", "generation", "gradients" -> wall seconds.
    """

    parts: Mapping[str, Table]
    seconds: float
    scored_tokens: int
    generated_tokens: int
    stages: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Table:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def examine(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    parts: Mapping[str, Part],
    *,
    precision: Precision = "fp32",
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Tables:
    """Score and decode all parts, in one length-grouped pass each.

    Args:
        model: A causal language model, wrapped or not. Where several processes run, all of them call this,
            share the work and get the same tables.
        tokenizer: Its tokenizer.
        parts: Name -> rows and what is asked about them.
        precision: Of all forward passes.
        batch_tokens: Tokens per batch, padding included; None: on a CPU 512 when scoring (what fits its
            caches is fastest) and 8,192 when decoding; elsewhere 32,768, and up to 131,072 when decoding,
            as far as keys and values take no more than a sixteenth of the accelerator's memory.
        cache: Folder of earlier results, which are taken where model, tokenizer, rows, settings and code are
            the same (see `expunge.table_cache`).
        progress: Called with the rows finished since the last call; `work` says how many there are in all.

    Raises:
        ValueError: A row has no prompt, or no response where it is to be scored.
        UsageError: `cache` cannot be a private folder.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    sizes = (512, 8192) if on_cpu else (32_768, _decoding_tokens(model))
    passes = _Passes(
        model, tokenizer, precision, (batch_tokens, batch_tokens) if batch_tokens else sizes, progress
    )
    if cache is None or isinstance(model, Guarded):  # what filters make of answers is not kept
        return passes.tables(parts)
    from expunge import table_cache  # imports this module

    key = table_cache.key(model, tokenizer, parts, precision, passes.batch_tokens)
    return table_cache.recall(cache, key, parts, lambda: passes.tables(parts), progress)


def _decoding_tokens(model: nn.Module) -> int:
    """Tokens per decoding batch on an accelerator, where a step takes as long for few rows as for many.

    From the memory that the device has, not from what is free: batches must not depend on who else is there.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return 32_768
    room = torch.cuda.get_device_properties(device).total_memory / 16 / cache_bytes(model)
    return next((size for size in (131_072, 65_536) if size <= room), 32_768)


def work(parts: Mapping[str, Part]) -> int:
    """Rows that `examine` reports as finished in all, each counted once per pass that it goes through."""
    return sum(
        len(part.rows) * ((part.scored or part.moments) + (part.new_tokens != 0) + part.gradients)
        for part in parts.values()
    )


@dataclass(frozen=True, slots=True)
class _Passes:
    """The passes with their settings, each over the rows of all parts that ask for it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    batch_tokens: tuple[int, int]
    progress: Progress | None

    def tables(self, parts: Mapping[str, Part]) -> Tables:
        """What the passes found, part by part."""
        asked = [part for part in parts.values() for _ in part.rows]
        rows = [row for part in parts.values() for row in part.rows]
        stages: dict[str, float] = {}
        with _timed(stages, "scoring"):
            prefixes = Prefixes(
                self.model, [row for row, part in zip(rows, asked, strict=True) if part.new_tokens != 0]
            )
            scores = self._scores(rows, asked, prefixes)
        with _timed(stages, "generation"):
            generations = self._generations(rows, asked, scores, prefixes)
        with _timed(stages, "gradients"):
            norms = self._norms(rows, asked)
        starts = accumulate([len(part.rows) for part in parts.values()], initial=0)
        tables = {
            name: Table(
                _slice(scores, start, len(part.rows)),
                _slice(generations, start, len(part.rows)),
                _slice(norms, start, len(part.rows)),
                _cut(part.rows, self.tokenizer),
            )
            for (name, part), start in zip(parts.items(), starts, strict=False)
        }
        return Tables(
            parts=tables,
            seconds=sum(stages.values()),
            scored_tokens=sum(len(rows[i].input_ids) for i in scores),
            generated_tokens=sum(len(generation.tokens) for generation in generations.values()),
            stages=stages,
        )

    def _scores(
        self, rows: Sequence[Encoded], asked: Sequence[Part], prefixes: Prefixes
    ) -> dict[int, TokenScores]:
        chosen = [i for i, part in enumerate(asked) if part.scored or part.moments]
        scores = score(
            self.model,
            [rows[i] for i in chosen],
            pad_id=int(self.tokenizer.pad_token_id or 0),
            precision=self.precision,
            batch_tokens=self.batch_tokens[0],
            prefixes=prefixes,
            moments=[asked[i].moments for i in chosen],
            progress=self.progress,
        )
        return dict(zip(chosen, scores, strict=True))

    def _generations(
        self,
        rows: Sequence[Encoded],
        asked: Sequence[Part],
        scores: Mapping[int, TokenScores],
        prefixes: Prefixes,
    ) -> dict[int, Generation]:
        chosen = [i for i, part in enumerate(asked) if part.new_tokens != 0]
        if not chosen:
            return {}
        generations = generate(
            self.model,
            [rows[i] for i in chosen],
            tokenizer=self.tokenizer,
            precision=self.precision,
            budgets=[asked[i].new_tokens for i in chosen],
            batch_tokens=self.batch_tokens[1],
            prefixes=prefixes,
            scores=[scores.get(i) for i in chosen],
            progress=self.progress,
        )
        return dict(zip(chosen, generations, strict=True))

    def _norms(self, rows: Sequence[Encoded], asked: Sequence[Part]) -> dict[int, float]:
        chosen = [i for i, part in enumerate(asked) if part.gradients]
        if not chosen:
            return {}
        norms = gradient_norms(
            self.model, [rows[i] for i in chosen], precision=self.precision, progress=self.progress
        )
        return dict(zip(chosen, norms, strict=True))


def _cut(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    return {
        i: str(tokenizer.decode(list(row.labels), skip_special_tokens=True))
        for i, row in enumerate(rows)
        if row.labels and row.labels[-1] not in special
    }


def _slice(found: Mapping[int, Item], start: int, count: int) -> list[Item]:
    return [found[i] for i in range(start, start + count) if i in found]


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - started
