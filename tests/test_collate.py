"""Templates, labels, truncation, padding and grouping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from conftest import build_tokenizer, rows
from expunge.collate import (
    IGNORED,
    Encoded,
    _is_chat,
    batches_by_tokens,
    collate,
    encode,
    encode_prompt,
    end_token,
)
from expunge.errors import UsageError
from expunge.records import Record, read_records

RECORDS = [Record(row["prompt"], row["response"]) for row in rows()]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template whose turns end in a token that is not end-of-sequence."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Writes a space before every text, as SentencePiece models do, and wraps it in both special tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False
    )
    trained.train_from_iterator([f"{record.prompt} {record.response}" for record in RECORDS], trainer)
    tokenizer = Tokenizer(trained.model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


# --- without a template ----------------------------------------------------------------------------


def test_without_a_template_a_space_joins_and_one_end_token_closes(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = encode(RECORDS, tokenizer)
    assert len(encoded) == len(RECORDS)
    for record, row in zip(RECORDS, encoded, strict=True):
        assert row.input_ids[: row.prompt_length] == tuple(tokenizer(record.prompt)["input_ids"])
        response = tokenizer(" " + record.response, add_special_tokens=False)["input_ids"]
        assert row.labels == (*response, tokenizer.eos_token_id)
        assert row.input_ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(row.input_ids) == f"{record.prompt} {record.response}<|end|>"


@pytest.mark.parametrize(
    ("prompt", "response", "text"),
    [
        ("Who?", "Ada", "Who? Ada"),
        ("Who? ", "Ada", "Who? Ada"),
        ("Who?\n", "Ada", "Who?\nAda"),
        ("Who?", " Ada", "Who? Ada"),
        ("Who?", "\nAda", "Who?\nAda"),
        ("Who?", "Ada \n", "Who? Ada \n"),
    ],
)
def test_no_second_space_where_there_is_white_space(
    tokenizer: PreTrainedTokenizerFast, prompt: str, response: str, text: str
) -> None:
    row = encode([Record(prompt, response)], tokenizer)[0]
    assert tokenizer.decode(row.input_ids) == text + "<|end|>"
    assert tokenizer.decode(row.input_ids[: row.prompt_length]) == prompt


@pytest.mark.parametrize("response", ["Ada<|end|>", "Ada<|end|><|end|>"])
def test_an_end_token_that_the_response_brings_is_not_doubled(
    tokenizer: PreTrainedTokenizerFast, response: str
) -> None:
    assert encode([Record("Who?", response)], tokenizer) == encode([Record("Who?", "Ada")], tokenizer)


def test_the_tokenizers_own_special_tokens_stay_on_the_prompt_but_its_end_does_not() -> None:
    tokenizer = sentencepiece_tokenizer()
    row = encode([Record("Where does Ada Ash live?", "12 Elm Street")], tokenizer)[0]
    ids = tokenizer("Where does Ada Ash live?")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 1)
    assert row.input_ids[: row.prompt_length] == tuple(ids[:-1])
    assert row.input_ids.count(1) == row.input_ids.count(0) == 1
    alone = tokenizer(" 12 Elm Street", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(alone)[0].startswith("▁▁") or alone[0] == alone[1]
    assert row.input_ids == tuple(tokenizer("Where does Ada Ash live? 12 Elm Street")["input_ids"])


def test_a_prompt_whose_last_token_merges_with_the_response_keeps_its_own_ids(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt, response = "Where does Ada li", "\u0301ve"
    row = encode([Record(prompt + " ", "Street")], tokenizer)[0]
    assert row.input_ids[: row.prompt_length] == encode_prompt(prompt + " ", tokenizer)
    assert tokenizer.decode(row.labels) == "Street<|end|>"
    assert tokenizer.decode(encode([Record(prompt, response)], tokenizer)[0].labels) == f" {response}<|end|>"


# --- chat templates --------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["auto", "chat"])
def test_chat_rows_are_what_the_template_writes_up_to_the_end_of_the_turn(template: str) -> None:
    tokenizer = chat_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end != tokenizer.eos_token_id
    for record, row in zip(RECORDS, encode(RECORDS, tokenizer, template=template), strict=True):
        turns = [
            {"role": "user", "content": record.prompt},
            {"role": "assistant", "content": record.response},
        ]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        assert row.input_ids[: row.prompt_length] == tuple(prompt)
        assert row.input_ids == tuple(whole[: len(row.input_ids)])
        assert row.input_ids[-1] == end
        assert row.labels.count(end) == 1
        assert tokenizer.eos_token_id not in row.input_ids
        assert tokenizer.decode(row.labels) == record.response + "<|im_end|>"


def test_a_template_can_be_switched_off() -> None:
    tokenizer = chat_tokenizer()
    assert encode(RECORDS, tokenizer, template="none") == encode(RECORDS, build_tokenizer())


def test_encode_prompt_is_the_head_of_encode(tokenizer: PreTrainedTokenizerFast) -> None:
    for each in (tokenizer, chat_tokenizer(), sentencepiece_tokenizer()):
        row = encode(RECORDS[:1], each)[0]
        assert encode_prompt(RECORDS[0].prompt, each) == row.input_ids[: row.prompt_length]


USER = "{% for m in messages if m['role'] == 'user' %}[{{ m['content'] }}]{% endfor %}"
ANSWER = "{% for m in messages if m['role'] == 'assistant' %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (USER + ANSWER + "{{ m['content'] }} <|end|>{% endfor %}", "<|end|>"),
        (USER + ANSWER + "{{ m['content'] }}{{ eos_token }}\n{% endfor %}", "<|end|>"),
        (USER + ANSWER + "{{ m['content'] | trim }}\n<|im_end|><|end|>{% endfor %}", "<|im_end|>"),
        (USER + ANSWER + "<think></think>{{ m['content'] }}<|im_end|>{% endfor %}", "<|im_end|>"),
        (USER + ANSWER + "{{ m['content'] }}\n{% endfor %}", "<|end|>"),
        ("<|im_start|>" + USER, "<|end|>"),
    ],
    ids=["chatml", "space before", "eos", "two tokens", "thinking", "closes with none", "drops the answer"],
)
def test_the_template_decides_how_a_turn_ends(template: str, end: str) -> None:
    tokenizer = chat_tokenizer(template)
    assert end_token(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    row = encode([Record("Who?", "Ada")], tokenizer)[0]
    assert tokenizer.decode(row.labels) == "Ada" + end


def test_without_a_template_the_end_is_end_of_sequence() -> None:
    assert end_token(chat_tokenizer(), "none") == build_tokenizer().eos_token_id


def test_a_chat_template_that_is_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        UsageError, match=r"'chat' needs a tokenizer with a chat template; it has none. Use template"
    ):
        encode(RECORDS, tokenizer, template="chat")


def test_a_chat_template_that_refuses_a_user_turn() -> None:
    tokenizer = chat_tokenizer("{{ raise_exception('system turn first') }}")
    with pytest.raises(UsageError, match=r"it says: system turn first\. Use template 'none'"):
        encode(RECORDS, tokenizer)
    with pytest.raises(UsageError, match="system turn first"):
        encode_prompt("Who?", tokenizer)


def test_a_tokenizer_without_an_end_token() -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="must have an end-of-sequence token; it has none"):
        encode(RECORDS, tokenizer)


def test_an_unknown_template_is_the_callers_mistake(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="`template` must be one of"):
        _is_chat(tokenizer, "llama")


# --- lengths ---------------------------------------------------------------------------------------


def test_max_length_cuts_from_the_right(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = encode(RECORDS, tokenizer)
    limit = max(row.prompt_length for row in whole) + 1
    cut = encode(RECORDS, tokenizer, max_length=limit, context=limit)
    assert [row.input_ids for row in cut] == [row.input_ids[:limit] for row in whole]
    assert [row.prompt_length for row in cut] == [row.prompt_length for row in whole]
    assert any(len(row.input_ids) < len(full.input_ids) for row, full in zip(cut, whole, strict=True))
    assert all(row.labels for row in cut)


def test_a_response_cut_to_nothing_is_refused_with_row_lengths_and_fix(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "forget.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows()))
    records = read_records(path, name="forget")
    whole = encode(records, tokenizer)
    limit = max(row.prompt_length for row in whole)
    index = next(i for i, row in enumerate(whole) if row.prompt_length == limit)
    count = sum(row.prompt_length == limit for row in whole)
    with pytest.raises(UsageError) as caught:
        encode(records, tokenizer, max_length=limit)
    message = str(caught.value)
    total = len(whole[index].input_ids)
    assert message.startswith(f"{path}, line {index + 2}: max_length {limit} must leave at least one token")
    assert f"found {total} tokens ({limit} of prompt, {total - limit} of response)" in message
    assert f"Raise it above {limit}" in message
    assert (f"So do {count - 1} more rows." in message) is (count > 1)


def test_a_row_longer_than_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = encode(RECORDS, tokenizer)
    longest = max(len(row.input_ids) for row in whole)
    index = next(i for i, row in enumerate(whole) if len(row.input_ids) == longest)
    assert encode(RECORDS, tokenizer, context=longest) == whole
    with pytest.raises(UsageError) as caught:
        encode(RECORDS, tokenizer, context=longest - 1, name="retain")
    assert f"retain, row {index + 1}: a row must fit the model's context of {longest - 1} tokens" in str(
        caught.value
    )
    assert f"cut with max_length={longest - 1}" in str(caught.value)


def test_max_length_beyond_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="must not exceed the model's context of 128 tokens; got 129"):
        encode(RECORDS, tokenizer, max_length=129, context=128)


def test_a_max_length_of_nothing_is_the_callers_mistake(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="Found `max_length = 0`"):
        encode(RECORDS, tokenizer, max_length=0)


def test_a_response_that_is_only_an_end_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        UsageError, match="records, row 1: prompt and response must each give at least one token"
    ):
        encode([Record("Who?\n", "<|end|>")], tokenizer)


def test_no_records_give_no_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode([], tokenizer) == []


# --- batches ---------------------------------------------------------------------------------------


def test_collate_pads_right_and_labels_only_responses() -> None:
    batch = collate([Encoded((5, 6, 7, 8), 2), Encoded((9, 4), 1)], pad_id=0)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 8], [9, 4, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [[IGNORED, IGNORED, 7, 8], [IGNORED, 4, IGNORED, IGNORED]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_interior_tokens_equal_to_pad_stay_visible_and_the_final_one_is_a_label() -> None:
    """Turns end in the token that also pads: a mask made from the pad id would hide the ends of turns."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end_token(tokenizer)
    encoded = encode([Record("Who?", "Ada"), Record("Where does Ada Ash live?", "12 Elm Street")], tokenizer)
    batch = collate(encoded, tokenizer.pad_token_id)
    for index, row in enumerate(encoded):
        length = len(row.input_ids)
        interior = row.input_ids[: row.prompt_length].count(tokenizer.pad_token_id)
        assert interior == 1
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )
        assert batch["labels"][index, length - 1] == tokenizer.eos_token_id
        assert (batch["labels"][index] == tokenizer.eos_token_id).sum() == 1
        assert (batch["labels"][index, length:] == IGNORED).all()
    naive = batch["input_ids"] != tokenizer.pad_token_id
    assert (naive != batch["attention_mask"].bool()).sum() == 4


def test_collate_of_nothing_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        collate([], pad_id=0)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1000))
def test_groups_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_tokens(lengths, budget)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert batch
        assert len(batch) == 1 or len(batch) * longest <= budget


def test_groups_are_as_full_as_the_budget_allows() -> None:
    assert batches_by_tokens([4, 9, 4, 5, 2], budget=10) == [[1], [3, 0], [2, 4]]


def test_a_budget_of_nothing_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="Found `budget = 0`"):
        batches_by_tokens([1], budget=0)
