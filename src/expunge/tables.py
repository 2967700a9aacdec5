"""What a model makes of parts of a data set: all of them in one scored pass and one generation pass.

Knows encoded rows and the two passes; knows no metric and no benchmark. Metrics are pure functions of the
tables that `examine` returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded
from expunge.scoring import Generation, Precision, Progress, TokenScores, generate, score


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
    """What one model made of one part, in the order of its rows; an empty list is what was not asked."""

    scores: list[TokenScores]
    generations: list[Generation]
    gradient_norms: list[float]


@dataclass(frozen=True, slots=True)
class Tables(Mapping[str, Table]):
    """Part -> table, and what they cost.

    Attributes:
        parts: The tables.
        seconds: Wall time of all passes.
        scored_tokens: Real tokens of all scored rows, prompts included.
        generated_tokens: Tokens of all answers.
        stages: "scoring", "generation", "gradients" -> wall seconds; a stage that was not asked is absent.
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
    batch_tokens: int = 4096,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Tables:
    """Score and decode all parts, in one length-grouped pass each.

    Args:
        model: A causal language model, wrapped or not.
        tokenizer: Its tokenizer.
        parts: Name -> rows and what is asked about them.
        precision: Of all forward passes.
        batch_tokens: Tokens per batch, padding included.
        cache: Folder of earlier results.
        progress: Called with the rows finished since the last call; `work` says how many there are in all.

    Raises:
        ValueError: A row has no prompt, or no response where it is to be scored.
    """
    started = time.perf_counter()
    asked = [part for part in parts.values() for _ in part.rows]
    rows = [row for part in parts.values() for row in part.rows]
    scored = [i for i, part in enumerate(asked) if part.scored or part.moments]
    decoded = [i for i, part in enumerate(asked) if part.new_tokens != 0]
    scores = dict(
        zip(
            scored,
            score(
                model,
                [rows[i] for i in scored],
                pad_id=int(tokenizer.pad_token_id or 0),
                precision=precision,
                batch_tokens=batch_tokens,
                moments=[asked[i].moments for i in scored],
                progress=progress,
            ),
            strict=True,
        )
    )
    generations = dict(
        zip(
            decoded,
            generate(
                model,
                [rows[i] for i in decoded],
                tokenizer=tokenizer,
                precision=precision,
                budgets=[asked[i].new_tokens for i in decoded],
                batch_tokens=batch_tokens,
                scores=[scores.get(i) for i in decoded],
                progress=progress,
            ),
            strict=True,
        )
    )
    tables, start = {}, 0
    for name, part in parts.items():
        own = range(start, start + len(part.rows))
        tables[name] = Table(
            [scores[i] for i in own if i in scores], [generations[i] for i in own if i in generations], []
        )
        start += len(part.rows)
    return Tables(
        tables,
        time.perf_counter() - started,
        sum(len(rows[i].input_ids) for i in scored),
        sum(len(g.tokens) for g in generations.values()),
    )


def work(parts: Mapping[str, Part]) -> int:
    """Rows that `examine` reports as finished in all, each counted once per pass that it goes through."""
    return sum(
        len(part.rows) * ((part.scored or part.moments) + (part.new_tokens != 0) + part.gradients)
        for part in parts.values()
    )
