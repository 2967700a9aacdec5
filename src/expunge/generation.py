"""The one generation pass: greedy answers to prompts, in batches that finished answers leave.

Knows encoded rows and a causal language model; knows no metric and no data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from expunge import ranks
from expunge.collate import Encoded
from expunge.inference import Precision, Progress, bare, evaluating, generator, model_context, runs
from expunge.prefixes import Prefixes
from expunge.scoring import TokenScores

MARGIN = 16
"""Tokens that an answer may be longer than the true response, where no budget says otherwise."""

_PREFIX_TOKENS = 512
"""Tokens per batch where beginnings are computed on a CPU: more do not fit its caches."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What greedy decoding gave.

    Attributes:
        text: Decoded without special tokens, white space stripped at both ends.
        tokens: New token ids, up to and including the first end-of-sequence token.
    """

    text: str
    tokens: tuple[int, ...]


Decode = Callable[[Sequence[Encoded], Sequence[int | None]], list[Generation]]
"""Rows and the new tokens that each may have -> an answer each, greedy but where an attack samples."""


@runtime_checkable
class Guarded(Protocol):
    """A model behind filters (`expunge.defences`): its answers are not what it alone would say."""

    def guarded(
        self, rows: Sequence[Encoded], budgets: Sequence[int | None], decode: Decode
    ) -> list[Generation]:
        """Answers to rows, made from what the model behind the filters decodes."""
        ...

    def behind(self) -> nn.Module:
        """The model behind the filters."""
        ...


def generate(
    model: nn.Module,
    prompts: Sequence[Encoded],
    *,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision = "fp32",
    budgets: Sequence[int | None] | None = None,
    batch_tokens: int = 4096,
    scores: Sequence[TokenScores | None] | None = None,
    prefixes: Prefixes | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """Decode greedily after every prompt, in one pass over left-padded batches of like length.

    A model behind filters gives what these let through.

    Each answer ends at an end-of-sequence token (the tokenizer's or one of the model's generation
    configuration), or when its own budget or the model's context is spent: it does not depend on its batch,
    which it leaves then. Nothing else of the model's generation configuration is applied: no sampling, no
    repetition penalty. Where several processes run, each decodes its share and all get everything.

    Args:
        model: A causal language model, wrapped or not, on any device.
        prompts: Rows with their true responses, which may be empty where a budget is given: only their
            length is used (but see `scores`).
        tokenizer: Decodes the answers.
        precision: Of the forward passes.
        budgets: New tokens that each row may have, at least 1; None: 16 more than its own response has (a
            response that was cut, and so has no end, gets none more).
        batch_tokens: Prompt and new tokens per batch, padding included.
        scores: The rows' scores under the same model, where known. Leading tokens that match under teacher
            forcing are what greedy decoding gives, so they are taken over and only the rest is decoded: the
            same text, far fewer steps for a model that knows the responses.
        prefixes: What the pass that gave the scores has kept.
        progress: Called with the number of rows finished since the last call.

    Raises:
        ValueError: A budget is below 1, a prompt is empty, or `scores` are not those of `prompts`.
    """
    given = scores if scores is not None else [None] * len(prompts)
    allowed = budgets if budgets is not None else [None] * len(prompts)
    _check(prompts, allowed)
    if isinstance(model, Guarded):
        decode = partial(_plainly, model.behind(), tokenizer, precision, batch_tokens)
        found = model.guarded(prompts, allowed, decode)
        if progress is not None:
            progress(len(found))
        return found
    model = bare(model)
    inner = generator(model)
    ends, context = _end_tokens(inner, tokenizer, prompts), model_context(model)
    answers = [
        _Answer.of(row, known, budget, context, ends)
        for row, known, budget in zip(prompts, given, allowed, strict=True)
    ]
    waiting = [i for i, answer in enumerate(answers) if answer.left]
    if progress is not None and len(waiting) < len(answers):
        progress(len(answers) - len(waiting))
    mine: list[int] = []
    prefixes = prefixes or Prefixes(model)
    with evaluating(model, precision), _greedy(inner, tokenizer, ends):
        for batch in ranks.own(_batches(answers, waiting, batch_tokens, model), model):
            _decode(inner, [answers[i] for i in batch], ends, prefixes, progress)
            mine += batch
    tokens = ranks.together({i: tuple(answers[i].tokens) for i in mine}, model)
    if progress is not None and len(mine) < len(tokens):
        progress(len(tokens) - len(mine))
    return [_text(tokenizer, tokens.get(i, tuple(answer.tokens))) for i, answer in enumerate(answers)]


def _plainly(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    batch_tokens: int,
    rows: Sequence[Encoded],
    budgets: Sequence[int | None],
) -> list[Generation]:
    return generate(
        model, rows, tokenizer=tokenizer, precision=precision, budgets=budgets, batch_tokens=batch_tokens
    )


def _check(prompts: Sequence[Encoded], budgets: Sequence[int | None]) -> None:
    for i, (row, budget) in enumerate(zip(prompts, budgets, strict=True)):
        if budget is not None and budget < 1:
            raise ValueError(f"`budgets` must be at least 1; got {budget} for row {i}.")
        if row.prompt_length < 1 or (budget is None and not row.labels):
            raise ValueError(
                "Every row must have at least one prompt token, and a response or a budget; "
                f"row {i} has {row.prompt_length} of {len(row.input_ids)} tokens in its prompt."
            )


@dataclass(slots=True)
class _Answer:
    """An answer in the making: what it follows, what it has, and how far it may go.

    Attributes:
        prompt: Token ids.
        tokens: Of the answer so far.
        left: How many more it may have; 0 once it has ended.
        expected: How many more the true response has: a guess at when it ends.
    """

    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    left: int = 0
    expected: int = 0

    @classmethod
    def of(
        cls,
        row: Encoded,
        scores: TokenScores | None,
        budget: int | None,
        context: int | None,
        ends: Collection[int],
    ) -> _Answer:
        """Begin with what teacher forcing proves; stay within the model's context if it states one."""
        most = budget
        if most is None:
            most = len(row.labels) + (MARGIN if row.input_ids[-1] in ends else 0)
        if context is not None:
            most = max(0, min(most, context - row.prompt_length))
        answer = cls(row.input_ids[: row.prompt_length], left=most)
        answer.extend(row.labels[: 0 if scores is None else _leading(row, scores)], ends)
        answer.expected = min(answer.left, len(row.labels) - len(answer.tokens))
        return answer

    def extend(self, tokens: Sequence[int], ends: Collection[int]) -> None:
        """Take new tokens up to the first that ends the answer, or as many as there is room for."""
        for token in tokens[: self.left]:
            self.tokens.append(token)
            self.left = 0 if token in ends else self.left - 1
            if not self.left:
                return

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.tokens)


def _leading(row: Encoded, scores: TokenScores) -> int:
    if len(scores.matches) != len(row.labels):
        raise ValueError(
            "`scores` must be those of `prompts`, in the same order; "
            f"a row of {len(row.labels)} response tokens came with {len(scores.matches)} scores."
        )
    return scores.leading


def _end_tokens(
    model: GenerationMixin, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded]
) -> frozenset[int]:
    """What ends an answer: for the model, the tokenizer, and the rows (a chat template's end of turn)."""
    stated = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns = {row.input_ids[-1] for row in rows if row.labels} & special.union(tokenizer.all_special_ids)
    return frozenset(turns.union(int(end) for end in ends if end is not None))


def _batches(
    answers: Sequence[_Answer], waiting: Sequence[int], batch_tokens: int, model: nn.Module
) -> list[list[int]]:
    """Numbers of the answers of each batch, longest first: of like steps to go, then of like prompt length.

    Steps to go are the true response's where it has any, since an answer that is known ends with it; they are
    alike if they are within a factor of √2.
    """
    sizes = {i: (answers[i].left, answers[i].length) for i in waiting}
    steps = {i: round(2 * math.log2(max(1, answers[i].expected or answers[i].left))) for i in waiting}
    order = sorted(waiting, key=lambda i: (steps[i], answers[i].length), reverse=True)
    return list(runs(order, sizes, ranks.portion(batch_tokens, sum(map(sum, sizes.values())), model)))


# --- decoding


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
        with _fused_attention(cast(PreTrainedModel, model)):
            yield
    finally:
        model.generation_config = before


@contextmanager
def _fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """SDPA in place of eager attention, which copies all keys and values of grouped heads at every step.

    Models that cap their attention logits keep what they have: SDPA has no such thing.
    """
    before = model.config._attn_implementation
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if before != "eager" or capped or not model._supports_sdpa:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _decode(
    model: GenerationMixin,
    batch: Sequence[_Answer],
    ends: Collection[int],
    prefixes: Prefixes,
    progress: Progress | None,
) -> None:
    """Extend the answers of one batch to their ends; those that have ended leave it."""
    context, device = model_context(prefixes.model), next(prefixes.model.parameters()).device
    rows = [(*answer.prompt, *answer.tokens) for answer in batch]
    ids, mask = _left_padded(rows, device)
    cache = prefixes.stacked(rows, _PREFIX_TOKENS)
    state = {} if cache is None else {"past_key_values": cache}
    while batch:
        quorum = len(batch) if cache is None else -(-len(batch) // 8)
        room = [context - answer.length for answer in batch] if context is not None else []
        out = cast(Any, model).generate(
            ids,
            attention_mask=mask,
            max_new_tokens=min([max(answer.left for answer in batch), *room]),
            stopping_criteria=StoppingCriteriaList([_Leaving(batch, ids.shape[1], ends, quorum, device)]),
            **state,
        )
        for answer, new in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            answer.extend(new, ends)
        staying = [i for i, answer in enumerate(batch) if answer.left]
        if progress is not None:
            progress(len(batch) - len(staying))
        batch = [batch[i] for i in staying]
        mask = torch.cat([mask, mask.new_ones(len(mask), out.shape[1] - mask.shape[1])], dim=1)[staying]
        ids = out[staying]
        if cache is not None and batch:
            cache.batch_select_indices(torch.tensor(staying, device=device))


class _Leaving(StoppingCriteria):
    """Ends a stretch of decoding when so many rows of the batch have ended and can leave it."""

    def __init__(
        self, batch: Sequence[_Answer], width: int, ends: Collection[int], quorum: int, device: torch.device
    ) -> None:
        self.last = torch.tensor([width + answer.left for answer in batch], device=device)
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        self.ended = torch.zeros(len(batch), dtype=torch.bool, device=device)
        self.quorum = quorum

    def __call__(self, input_ids: Int[Tensor, "b t"], scores: Any, **kwargs: Any) -> Bool[Tensor, " b"]:
        """All True as soon as enough rows have ended."""
        self.ended |= torch.isin(input_ids[:, -1], self.ends) | (input_ids.shape[1] >= self.last)
        return (self.ended.sum() >= self.quorum).expand(len(input_ids))


def _left_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> Generation:
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return Generation(text=str(text).strip(), tokens=tokens)
