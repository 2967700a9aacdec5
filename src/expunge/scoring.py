"""The one scored pass and the one generation pass that every metric is computed from.

Knows encoded rows and a causal language model; knows no metric and no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from expunge.collate import Encoded, batches_by_tokens, collate
from expunge.logits import label_positions, select_logits

Precision = Literal["fp32", "bf16"]
Progress = Callable[[int], None]

MARGIN = 16
"""Tokens that an answer may be longer than the true response, where no budget says otherwise."""

_SOFTMAX_ELEMENTS = 1 << 24
"""Elements of a [k, v] block that are turned into log-probabilities at once: 64 MiB in fp32."""

_LOGIT_ELEMENTS = 1 << 26
"""Elements of the [k, v] logits of one batch of several rows: 256 MiB in fp32."""


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


@dataclass(frozen=True, slots=True)
class Generation:
    """What greedy decoding gave.

    Attributes:
        text: Decoded without special tokens, white space stripped at both ends.
        tokens: New token ids, up to and including the first end-of-sequence token.
    """

    text: str
    tokens: tuple[int, ...]


@contextmanager
def evaluating(model: nn.Module, precision: Precision) -> Iterator[torch.device]:
    """Evaluation mode without gradients, in a stated precision; all is put back at the end, also on error.

    For bf16 one autocast context spans all that happens inside, so that each weight is cast once and not once
    per forward pass. Autocast keeps casts only of leaves that require a gradient, so frozen weights pretend
    to for as long as no gradient can be recorded. Mixed precision training replaces `forward` on the
    instance; inside, the class's own one runs.

    Args:
        model: Wrapped or not.
        precision: "fp32" runs in the weights' own dtype even where the caller is under autocast.

    Yields:
        The device of the first parameter.
    """
    device = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    frozen = [p for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad]
    mixed = vars(model).pop("forward", None)
    model.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield device
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in training:
            module.training = True
        if mixed is not None:
            vars(model)["forward"] = mixed


def score(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    precision: Precision = "fp32",
    batch_tokens: int = 4096,
    moments: bool | Sequence[bool] = False,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Score every response token of every row, in one pass over length-grouped batches.

    Only label positions are projected to the vocabulary. Log-probabilities come from an fp32 softmax (fp64
    for an fp64 model) whatever the precision of the pass.

    Args:
        model: A causal language model, wrapped or not, on any device.
        rows: In any order; the result has the same order.
        pad_id: Fills the batch; its value does not matter.
        precision: Of the forward pass.
        batch_tokens: Tokens per batch, padding included.
        moments: Also mean and deviation of the log-probabilities, of all rows or of those that are True.
        progress: Called after each batch with the number of rows that it held.

    Raises:
        ValueError: A row has no response token, or no token before it.
    """
    _check_rows(rows)
    wanted = [moments] * len(rows) if isinstance(moments, bool) else moments
    scores: dict[int, TokenScores] = {}
    with evaluating(model, precision) as device:
        for batch in _score_batches(rows, batch_tokens, _LOGIT_ELEMENTS // _vocabulary(model)):
            inputs = {
                key: value.to(device) for key, value in collate([rows[i] for i in batch], pad_id).items()
            }
            found = _score_batch(model, inputs, [wanted[i] for i in batch])
            scores.update(zip(batch, found, strict=True))
            if progress is not None:
                progress(len(batch))
    return [scores[i] for i in range(len(rows))]


def generate(
    model: nn.Module,
    prompts: Sequence[Encoded],
    *,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision = "fp32",
    budgets: Sequence[int | None] | None = None,
    batch_tokens: int = 4096,
    scores: Sequence[TokenScores | None] | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """Decode greedily after every prompt, in one pass over left-padded batches of like response length.

    Each answer ends at an end-of-sequence token (the tokenizer's or one of the model's generation
    configuration), or when its own budget or the model's context is spent: it does not depend on its batch.
    Nothing else of the model's generation configuration is applied: no sampling, no repetition penalty.

    Args:
        model: A causal language model, wrapped or not, on any device.
        prompts: Rows with their true responses, of which only the length is used (but see `scores`).
        tokenizer: Decodes the answers.
        precision: Of the forward passes.
        budgets: New tokens that each row may have, at least 1; None: 16 more than its own response has (a
            response that was cut, and so has no end, gets none more).
        batch_tokens: Prompt and new tokens per batch, padding included.
        scores: The rows' scores under the same model. Leading tokens that match under teacher forcing are
            what greedy decoding gives, so they are taken over and only the rest is decoded: the same text,
            far fewer steps for a model that knows the responses.
        progress: Called with the number of rows finished since the last call.

    Raises:
        ValueError: A budget is below 1, a prompt is empty, or `scores` are not those of `prompts`.
    """
    allowed = budgets if budgets is not None else [None] * len(prompts)
    if wrong := [budget for budget in allowed if budget is not None and budget < 1]:
        raise ValueError(f"`budgets` must be at least 1; got {wrong[0]}.")
    _check_rows(prompts)
    inner = _generator(model)
    ends, context = _end_tokens(inner, tokenizer, prompts), context_length(model)
    given = scores if scores is not None else [None] * len(prompts)
    starts = [
        _Start.of(row, 0 if known is None else _leading(row, known), budget, context, ends)
        for row, known, budget in zip(prompts, given, allowed, strict=True)
    ]
    tokens = {i: start.known for i, start in enumerate(starts) if start.limit < 1}
    if progress is not None and tokens:
        progress(len(tokens))
    with evaluating(model, precision) as device, _greedy(inner, tokenizer, ends):
        for batch in _generation_batches(starts, batch_tokens, context):
            tokens.update(zip(batch, _continue(inner, [starts[i] for i in batch], ends, device), strict=True))
            if progress is not None:
                progress(len(batch))
    return [_decode(tokenizer, tokens[i]) for i in range(len(prompts))]


def context_length(model: nn.Module) -> int | None:
    """Positions that the model's configuration states, if it states any."""
    stated = getattr(_language_model(model).config.get_text_config(), "max_position_embeddings", None)
    return None if stated is None else int(stated)


def _check_rows(rows: Sequence[Encoded]) -> None:
    for i, row in enumerate(rows):
        if not 0 < row.prompt_length < len(row.input_ids):
            raise ValueError(
                "Every row must have at least one prompt token and one response token; "
                f"row {i} has {row.prompt_length} of {len(row.input_ids)} tokens in its prompt."
            )


def _language_model(model: nn.Module) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ValueError(f"`model` must be or hold a transformers model; got {type(model).__name__}.")


def _generator(model: nn.Module) -> GenerationMixin:
    for module in model.modules():
        if isinstance(module, GenerationMixin):
            return module
    raise ValueError(f"`model` must be or hold a model that can generate; got {type(model).__name__}.")


def _vocabulary(model: nn.Module) -> int:
    return int(_language_model(model).config.get_text_config().vocab_size)


# --- scored pass


def _score_batches(rows: Sequence[Encoded], batch_tokens: int, labels: int) -> Iterator[list[int]]:
    """Row numbers of each batch; `batch_tokens` tokens and `labels` labels at most if several rows."""
    for batch in batches_by_tokens([len(row.input_ids) for row in rows], batch_tokens):
        yield from _cut(batch, [(len(row.input_ids) - row.prompt_length,) for row in rows], labels)


def _cut(
    order: Iterable[int], sizes: Sequence[tuple[int, ...]], budget: int, width: int | None = None
) -> Iterator[list[int]]:
    """Cut a sequence of items into runs; a run's width is the sum of its items' widest sizes.

    Items x width stays within the budget and the width within its own bound, unless one item exceeds them.
    """
    run: list[int] = []
    widest: tuple[int, ...] = ()
    for item in order:
        wider = tuple(map(max, widest, sizes[item])) if run else sizes[item]
        most = budget if width is None else min(budget, width * (len(run) + 1))
        if run and (len(run) + 1) * sum(wider) > most:
            yield run
            run, wider = [], sizes[item]
        run.append(item)
        widest = wider
    if run:
        yield run


def _score_batch(model: nn.Module, batch: Mapping[str, Tensor], moments: Sequence[bool]) -> list[TokenScores]:
    positions = label_positions(batch["labels"])
    logits = select_logits(model, batch["input_ids"], batch["attention_mask"], positions)
    targets = batch["labels"][:, 1:][positions[:, :-1]]
    sizes = positions.sum(1)
    wanted = torch.tensor(moments, device=sizes.device).repeat_interleave(sizes)
    columns = _token_scores(logits, targets, wanted)
    ends = sizes.cumsum(0)[:-1].tolist()
    rows = zip(*(np.split(column, ends) for column in columns), moments, strict=True)
    return [
        TokenScores(log_probs, matches, *((means, deviations) if asked else (None, None)))
        for log_probs, matches, means, deviations, asked in rows
    ]


def _token_scores(
    logits: Float[Tensor, "k v"], targets: Int[Tensor, " k"], moments: Bool[Tensor, " k"]
) -> tuple[npt.NDArray[Any], ...]:
    """Log-probability, match, mean and deviation of each label, a block of labels at a time."""
    size = max(1, _SOFTMAX_ELEMENTS // logits.shape[1])
    blocks = zip(logits.split(size), targets.split(size), moments.split(size), strict=True)
    columns = zip(*(_block_scores(*block) for block in blocks), strict=True)
    return tuple(torch.cat(column).numpy() for column in columns)


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


# --- generation pass


@dataclass(frozen=True, slots=True)
class _Start:
    """Where decoding of one row begins, and how far it may go."""

    prefix: tuple[int, ...]
    known: tuple[int, ...]
    limit: int

    @classmethod
    def of(
        cls, row: Encoded, known: int, budget: int | None, context: int | None, ends: Collection[int]
    ) -> _Start:
        """Begin after the first `known` response tokens; stay within the model's context if it states one."""
        most = len(row.labels) + (MARGIN if row.input_ids[-1] in ends else 0) if budget is None else budget
        if context is not None:
            most = max(0, min(most, context - row.prompt_length))
        answer = _until_end(row.labels[: min(known, most)], ends)
        ended = bool(answer) and answer[-1] in ends
        prefix = row.input_ids[: row.prompt_length] + answer
        return cls(prefix, answer, 0 if ended else most - len(answer))


def _leading(row: Encoded, scores: TokenScores) -> int:
    tokens = len(row.input_ids) - row.prompt_length
    if len(scores.matches) != tokens:
        raise ValueError(
            "`scores` must be those of `prompts`, in the same order; "
            f"a row of {tokens} response tokens came with {len(scores.matches)} scores."
        )
    return scores.leading


def _end_tokens(
    model: GenerationMixin, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]
) -> frozenset[int]:
    """What ends an answer: for the model, the tokenizer, and the rows (a chat template's end of turn)."""
    stated = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns = {row.input_ids[-1] for row in rows} & special.union(tokenizer.all_special_ids)
    return frozenset(turns.union(int(end) for end in ends if end is not None))


@contextmanager
def _greedy(
    model: GenerationMixin, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]
) -> Iterator[None]:
    """Plain greedy search in place of the model's generation configuration, which `generate` would mix in."""
    before = model.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    model.generation_config = GenerationConfig(
        do_sample=False, use_cache=True, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    try:
        yield
    finally:
        model.generation_config = before


def _generation_batches(
    starts: Sequence[_Start], batch_tokens: int, context: int | None
) -> Iterator[list[int]]:
    """Row numbers of each batch, by steps to go so that rows end together, then by prompt length.

    No row of a batch runs out of the model's context while another still goes on.
    """
    sizes = [(start.limit, len(start.prefix)) for start in starts]
    order = sorted((i for i, start in enumerate(starts) if start.limit > 0), key=sizes.__getitem__)
    return _cut(order, sizes, batch_tokens, context)


def _continue(
    model: GenerationMixin, starts: Sequence[_Start], ends: Collection[int], device: torch.device
) -> list[tuple[int, ...]]:
    width = max(len(start.prefix) for start in starts)
    ids = torch.zeros(len(starts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, start in enumerate(starts):
        ids[row, width - len(start.prefix) :] = torch.tensor(start.prefix)
        mask[row, width - len(start.prefix) :] = 1
    steps = max(start.limit for start in starts)
    out = cast(Any, model).generate(ids.to(device), attention_mask=mask.to(device), max_new_tokens=steps)
    new = out[:, width:].tolist()
    return [
        start.known + _until_end(row[: start.limit], ends) for start, row in zip(starts, new, strict=True)
    ]


def _until_end(tokens: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> Generation:
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return Generation(text=str(text).strip(), tokens=tokens)
