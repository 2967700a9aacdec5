"""Records -> token ids -> padded batches. Knows tokenizers and templates; knows no model.

A row is prompt tokens, response tokens and one token that ends the turn. The loss covers the response
and that last token. What is padding is known from the rows' lengths, never from the pad id: many
tokenizers pad with the very token that ends a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expunge.errors import UsageError
from expunge.records import Record, Records

Template = Literal["auto", "chat", "none"]

IGNORED = -100
"""Label of positions that carry no loss."""

_QUESTION, _ANSWER = "question-probe", "answer-probe"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one record; those from `prompt_length` on are labels.

    The last one ends the turn, unless `max_length` cut it off.
    """

    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def labels(self) -> tuple[int, ...]:
        """Ids of the response and of the token that ends the turn."""
        return self.input_ids[self.prompt_length :]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How records become rows; see `encode`.

    Attributes:
        template: Whether the prompt goes into the tokenizer's chat template.
        max_length: Longer rows are cut from the right, in tokens; None cuts nothing.
    """

    template: Template = "auto"
    max_length: int | None = None

    def rows(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int | None = None,
        name: str = "records",
    ) -> list[Encoded]:
        """`encode` with these settings."""
        return encode(
            records,
            tokenizer,
            template=self.template,
            max_length=self.max_length,
            context=context,
            name=name,
        )


def encode(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template = "auto",
    max_length: int | None = None,
    context: int | None = None,
    name: str = "records",
) -> list[Encoded]:
    """Tokenize records.

    Args:
        records: What to encode. `Records` know the file and line of each row, for messages.
        tokenizer: The model's own.
        template: "chat" puts the prompt into the tokenizer's chat template. "none" joins prompt and response
            with a space, where neither side has white space already. "auto" is "chat" if there is a template.
        max_length: Cut longer rows from the right, in tokens.
        context: The model's context in tokens; longer rows are refused, not cut.
        name: What to call the records in messages when they are not `Records`.

    Raises:
        UsageError: A row does not fit, or cutting it would leave nothing of its response; `max_length`
            exceeds `context`; the tokenizer lacks an end-of-sequence token, or the template asked for.
        ValueError: `max_length` or `template` is out of range.
    """
    _check_lengths(max_length, context)
    end = end_token(tokenizer, template)
    chat = _is_chat(tokenizer, template)
    prompts = [_prompt_text(record.prompt, tokenizer, chat) for record in records]
    heads = _prompt_ids(prompts, tokenizer, chat)
    rows, problems = [], []
    for index, body in enumerate(_response_ids(records, prompts, heads, tokenizer, chat)):
        while body and body[-1] == end:
            body.pop()
        row = Encoded((*heads[index], *body, end), len(heads[index]))
        if problem := _problem(row, max_length, context):
            problems.append(f"{_place(records, index, name)}: {problem}")
        rows.append(Encoded(row.input_ids[:max_length], row.prompt_length))
    if problems:
        more = f" So do {len(problems) - 1} more rows." if len(problems) > 1 else ""
        raise UsageError(problems[0] + more)
    return rows


def encode_prompt(
    prompt: str, tokenizer: PreTrainedTokenizerBase, template: Template = "auto"
) -> tuple[int, ...]:
    """Ids that a response would follow: the prompt in the chat template, or as the tokenizer encodes it.

    Raises:
        UsageError: A chat template was asked for and there is none, or it refuses a single user turn.
    """
    chat = _is_chat(tokenizer, template)
    return tuple(_prompt_ids([_prompt_text(prompt, tokenizer, chat)], tokenizer, chat)[0])


def end_token(tokenizer: PreTrainedTokenizerBase, template: Template = "auto") -> int:
    """Id that ends a response: the special token with which the chat template closes an assistant's turn.

    Without a template, or when it closes turns with none, the tokenizer's end-of-sequence token.

    Raises:
        UsageError: There is no such token.
    """
    if _is_chat(tokenizer, template):
        turn = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        _, answer, rest = _render(tokenizer, turn, add_generation_prompt=False).rpartition(_ANSWER)
        special = {*tokenizer.all_special_ids}
        special.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        closing = [i for i in _tokens([rest], tokenizer, special=False)[0] if i in special]
        if answer and closing:
            return closing[0]
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "The tokenizer must have an end-of-sequence token; it has none. Set its `eos_token`."
        )
    return int(tokenizer.eos_token_id)


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, Int[Tensor, "b t"]]:
    """A right-padded batch: input_ids, attention_mask (1 on real tokens), labels (`IGNORED` elsewhere).

    The mask comes from the rows' lengths, so a token inside a row stays visible when it equals `pad_id`.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row. Found none.")
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    input_ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        labels[index, row.prompt_length : length] = torch.tensor(row.labels)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group row indices of similar length, longest first, so that little is padded.

    Args:
        lengths: Tokens of each row.
        budget: Upper bound of rows x longest row per batch. A row that exceeds it is a batch by itself.

    Returns:
        Batches of indices; each index stands in exactly one.

    Raises:
        ValueError: `budget` is less than 1.
    """
    if budget < 1:
        raise ValueError(f"`budget` must be at least 1. Found `budget = {budget}`.")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def _is_chat(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    if template not in get_args(Template):
        raise ValueError(f"`template` must be one of {get_args(Template)}. Found `template = {template!r}`.")
    if template == "chat" and not tokenizer.chat_template:
        raise UsageError(
            "Template 'chat' needs a tokenizer with a chat template; it has none. Use template 'none'."
        )
    return template != "none" and bool(tokenizer.chat_template)


def _check_lengths(max_length: int | None, context: int | None) -> None:
    if max_length is not None and max_length < 1:
        raise ValueError(f"`max_length` must be at least 1. Found `max_length = {max_length}`.")
    if max_length is not None and context is not None and max_length > context:
        rule = f"must not exceed the model's context of {context} tokens"
        raise UsageError(f"`max_length` {rule}; got {max_length}. Lower it.")


def _problem(row: Encoded, max_length: int | None, context: int | None) -> str:
    """What is wrong with an uncut row, or nothing."""
    head, total = row.prompt_length, len(row.input_ids)
    found = f"found {total} tokens ({head} of prompt, {total - head} of response)"
    if not head or total - head < 2:
        return f"prompt and response must each give at least one token; {found}. Drop or mend the row."
    if max_length is not None and head >= max_length:
        fix = f"Raise it above {head}, or shorten the prompt."
        return f"max_length {max_length} must leave at least one token of the response; {found}. {fix}"
    if max_length is None and context is not None and total > context:
        fix = f"Shorten the row, or cut with max_length={context}."
        return f"a row must fit the model's context of {context} tokens; {found}. {fix}"
    return ""


def _place(records: Sequence[Record], index: int, name: str) -> str:
    if isinstance(records, Records):
        return f"{records.source}, {records.number(index)}"
    return f"{name}, row {index + 1}"


def _prompt_text(prompt: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    if not chat:
        return prompt
    return _render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except TemplateError as error:
        rule = "The chat template must render one user turn and its answer"
        raise UsageError(f"{rule}; it says: {error}. Use template 'none'.") from error


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    encoded: Any = tokenizer(texts, add_special_tokens=special, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _prompt_ids(prompts: list[str], tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[list[int]]:
    """Ids of rendered prompts.

    A chat template writes its special tokens itself; a bare prompt gets those that the tokenizer adds, except
    an end-of-sequence token at its end: the response is to follow.
    """
    heads = _tokens(prompts, tokenizer, special=not chat)
    appended = not chat and _tokens(["a"], tokenizer, special=True)[0][-1:] == [tokenizer.eos_token_id]
    return [head[:-1] if appended else head for head in heads]


def _response_ids(
    records: Sequence[Record],
    prompts: list[str],
    heads: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    chat: bool,
) -> list[list[int]]:
    """Ids of the responses as they continue the prompts.

    Taken from prompt and response tokenized together where that leaves the prompt's ids as they are (some
    tokenizers write a word differently at the start of a text), else from the response tokenized alone.
    """
    responses = [
        record.response
        if chat or prompt[-1:].isspace() or record.response[:1].isspace()
        else " " + record.response
        for record, prompt in zip(records, prompts, strict=True)
    ]
    whole = _tokens([p + r for p, r in zip(prompts, responses, strict=True)], tokenizer, special=not chat)
    alone = _tokens(responses, tokenizer, special=False)
    return [
        both[len(head) :] if both[: len(head)] == head and len(both) > len(head) else body
        for head, both, body in zip(heads, whole, alone, strict=True)
    ]
