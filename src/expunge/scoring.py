"""The one scored pass: what a model thinks of every response token, given everything before it.

Knows encoded rows and a causal language model; knows no metric and no data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from expunge import ranks
from expunge.collate import Encoded, batches_by_tokens, collate
from expunge.inference import Precision, Progress, bare, evaluating, language_model, runs
from expunge.logits import label_positions, output_embedding, select_hidden, select_logits
from expunge.prefixes import Prefixes

_SOFTMAX_ELEMENTS = 1 << 24
"""Elements of a [k, v] block that are turned into log-probabilities at once: 64 MiB in fp32."""

_LOGIT_ELEMENTS = 1 << 26
"""Elements of a batch's [k, v] logits where they cannot be had block by block: 256 MiB in fp32."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """What the model thinks of one response, token by token, given everything before the token.

    Attributes:
        log_probs: Log-probability of each response token, the end-of-sequence token included (nats), [t].
        matches: Whether the token is the likeliest one after the true prefix (teacher forcing), [t].
        means: Mean of log p(·|prefix) under p(·|prefix) at each response position, [t]; None if not asked.
        deviations: Its standard deviation, [t]; None if not asked.
    """

    log_probs: npt.NDArray[np.float64]
    matches: npt.NDArray[np.bool_]
    means: npt.NDArray[np.float64] | None = None
    deviations: npt.NDArray[np.float64] | None = None

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per response token, in nats."""
        return float(-self.log_probs.mean())

    @property
    def probability(self) -> float:
        """P(response | prompt)^(1/t), TOFU's length-normalised probability (arXiv 2401.06121, 2.2.2)."""
        return float(np.exp(-self.nll))

    @property
    def reproduced(self) -> bool:
        """Whether greedy decoding gives the whole response: every token is the likeliest one."""
        return bool(self.matches.all())

    @property
    def leading(self) -> int:
        """How many tokens at the start of the response greedy decoding gives."""
        return len(self.matches) if self.reproduced else int(self.matches.argmin())


def score(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    precision: Precision = "fp32",
    batch_tokens: int = 4096,
    moments: bool | Sequence[bool] = False,
    prefixes: Prefixes | None = None,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Score every response token of every row, in one pass over length-grouped batches.

    Only label positions are projected to the vocabulary, a block at a time, so that no batch's logits ever
    exist as a whole. Log-probabilities come from an fp32 softmax (fp64 for an fp64 model) whatever the
    precision of the pass. Where several processes run, each scores its share and all get everything.

    Args:
        model: A causal language model, wrapped or not, on any device.
        rows: In any order; the result has the same order.
        pad_id: Fills the batch; its value does not matter.
        precision: Of the forward pass.
        batch_tokens: Tokens per batch, padding included.
        moments: Also mean and deviation of the log-probabilities, of all rows or of those that are True.
        prefixes: Keeps what the generation pass can start from.
        progress: Called after each batch with the number of rows that it held.

    Raises:
        ValueError: A row has no response token, or no token before it.
    """
    check_rows(rows)
    asked = [moments] * len(rows) if isinstance(moments, bool) else list(moments)
    if not rows:
        return []
    model = bare(model)
    scores: dict[int, TokenScores] = {}
    with evaluating(model, precision) as device:
        blocks = _projects_blocks(model, rows[0], device)
        for batch in ranks.own(list(_batches(model, rows, batch_tokens, blocks)), model, even=True):
            chosen = [rows[i] for i in batch]
            inputs = {name: value.to(device) for name, value in collate(chosen, pad_id).items()}
            cache = prefixes.cache(chosen) if prefixes is not None and blocks else None
            found = _score_batch(model, inputs, [asked[i] for i in batch], blocks, cache)
            scores.update(zip(batch, found, strict=True))
            if prefixes is not None:
                prefixes.keep(cache, chosen, [one.leading for one in found])
            if progress is not None:
                progress(len(batch))
    whole = ranks.together(scores, model, even=True)
    if progress is not None and len(scores) < len(whole):
        progress(len(whole) - len(scores))
    return [whole[i] for i in range(len(rows))]


def check_rows(rows: Sequence[Encoded]) -> None:
    """Refuse rows without a response token, or without a token before it (ValueError)."""
    for i, row in enumerate(rows):
        if not 0 < row.prompt_length < len(row.input_ids):
            raise ValueError(
                "Every row must have at least one prompt token and one response token; "
                f"row {i} has {row.prompt_length} of {len(row.input_ids)} tokens in its prompt."
            )


def _projects_blocks(model: nn.Module, row: Encoded, device: torch.device) -> bool:
    """Whether the model's logits are what its output embedding gives, and nothing is done to them after.

    Some models cap or scale them in their forward pass; that of a sharded model must run as a whole.
    """
    if ranks.sharded(model):
        return False
    ids = torch.tensor([row.input_ids[:2]], device=device)
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[0, 0] = True
    hidden, logits = select_hidden(model, ids, torch.ones_like(ids), first)
    return torch.equal(output_embedding(model)(hidden).to(logits.dtype), logits)


def _batches(
    model: nn.Module, rows: Sequence[Encoded], batch_tokens: int, blocks: bool
) -> Iterator[list[int]]:
    """Row numbers of each batch: of like length, `batch_tokens` tokens at most if several rows.

    Where logits exist as a whole, their number is bounded too.
    """
    lengths = [len(row.input_ids) for row in rows]
    batches = batches_by_tokens(lengths, ranks.portion(batch_tokens, sum(lengths), model, even=True))
    if blocks:
        yield from batches
        return
    labels = _LOGIT_ELEMENTS // language_model(model).config.get_text_config().vocab_size
    for batch in batches:
        yield from runs(batch, [(len(row.labels),) for row in rows], labels)


def _score_batch(
    model: nn.Module, batch: Mapping[str, Tensor], moments: Sequence[bool], blocks: bool, cache: Cache | None
) -> list[TokenScores]:
    positions = label_positions(batch["labels"])
    targets = batch["labels"][:, 1:][positions[:, :-1]]
    sizes = positions.sum(1)
    wanted = torch.tensor(moments, device=sizes.device).repeat_interleave(sizes)
    logits = _logit_blocks(model, batch, positions, blocks, cache)
    columns = _token_scores(logits, targets, wanted)
    ends = sizes.cumsum(0)[:-1].tolist()
    rows = zip(*(np.split(column, ends) for column in columns), moments, strict=True)
    return [
        TokenScores(log_probs, matches, *((means, deviations) if asked else (None, None)))
        for log_probs, matches, means, deviations, asked in rows
    ]


def _logit_blocks(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    positions: Bool[Tensor, "b t"],
    blocks: bool,
    cache: Cache | None,
) -> Iterator[Float[Tensor, "k v"]]:
    """Logits at the chosen positions, in row-major order, no more than `_SOFTMAX_ELEMENTS` at once."""
    size = max(1, _SOFTMAX_ELEMENTS // language_model(model).config.get_text_config().vocab_size)
    if blocks:
        hidden, _ = select_hidden(model, batch["input_ids"], batch["attention_mask"], positions, cache)
        yield from map(output_embedding(model), hidden.split(size))
    else:
        logits = select_logits(model, batch["input_ids"], batch["attention_mask"], positions)
        yield from logits.split(size)


def _token_scores(
    logits: Iterator[Float[Tensor, "k v"]], targets: Int[Tensor, " n"], moments: Bool[Tensor, " n"]
) -> tuple[npt.NDArray[Any], ...]:
    """Log-probability, match, mean and deviation of each label."""
    columns, start = [], 0
    for block in logits:
        part = slice(start, start + len(block))
        columns.append(_block_scores(block, targets[part], moments[part]))
        start = part.stop
    return tuple(torch.cat(column).numpy() for column in zip(*columns, strict=True))


def _block_scores(
    logits: Float[Tensor, "k v"], targets: Int[Tensor, " k"], moments: Bool[Tensor, " k"]
) -> tuple[Tensor, ...]:
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    own = log_p.gather(1, targets[:, None])[:, 0].double().cpu()
    matches = (logits.argmax(-1) == targets).cpu()
    means, deviations = torch.full_like(own, torch.nan), torch.full_like(own, torch.nan)
    if moments.any():
        asked = moments.cpu()
        means[asked], deviations[asked] = _moments(log_p if asked.all() else log_p[moments])
    return own, matches, means, deviations


def _moments(log_p: Float[Tensor, "k v"]) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Mean and standard deviation of log p under p; what cannot occur (log p = -inf) counts nothing."""
    p = log_p.exp()
    log_p = log_p.clamp_min(torch.finfo(log_p.dtype).min)
    mean = torch.linalg.vecdot(p, log_p)
    variance = torch.linalg.vecdot(p, (log_p - mean[:, None]).square_().nan_to_num_())
    return mean.double().cpu(), variance.sqrt().double().cpu()
