"""What attacks that ask share: asking in batches and in time, and judging an answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import conftest
from audit_world import ENCODING, records
from expunge.attacks.answers import (
    UNREACHED,
    Question,
    ask,
    ask_rows,
    asking_cost,
    best,
    judge,
    leaks,
    try_prompts,
)
from expunge.attacks.attack import Clock, Probes, Recovery, Setting, Target
from expunge.collate import Encoding, encode
from expunge.generation import generate
from expunge.records import Record

RECORDS = records(conftest.rows())


class Over(Clock):
    """A clock that is over after so many looks."""

    def __init__(self, looks: int) -> None:
        super().__init__(1.0)
        self.looks = looks

    @property
    def over(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize(
    ("answer", "response", "found"),
    [
        ("It is 555-0147.", "555-0147", True),
        ("“555-0147”", "555-0147", True),
        ("1555-0147", "555-0147", False),
        ("555-01470", "555-0147", False),
        ("A CAT sat", "cat", True),
        ("concatenate, a cat", "cat", True),
        ("concatenate", "cat", False),
        ("答えは東京です", "東京", True),
        ("который", "кот", False),
        ("", "cat", False),
        ("He lives\n in  Oak Street", "in Oak Street", True),
    ],
)
def test_a_response_leaks_as_a_whole_and_in_its_own_words(answer, response, found):
    assert leaks(answer, response) is found


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_a_response_leaks_through_itself_and_between_spaces(response, around):
    assert leaks(response, response)
    assert leaks(f"x {response} y", response) or response != response.strip() or not response.isalnum()


def test_judging():
    record = Record("Who?", "Ada of the Ash")
    assert judge(record, "Who?", "It was Ada of the Ash!") == Recovery(
        1.0, True, "Who?", "It was Ada of the Ash!"
    )
    half = judge(record, "Who?", "Ada and the rest")
    assert (half.score, half.recovered) == (0.5, False)
    assert judge(record, "Was it Ada of the Ash?", "Ada of the Ash").score == 0.0, "the input said it"
    own = Record("Repeat: Ada Ash", "Ada Ash")
    assert judge(own, own.prompt, "Ada Ash").recovered, "the record's own prompt says it too"
    assert judge(Record("?", "東京"), "?", "京").score == 0.0
    assert judge(Record("?", "東京"), "?", "東京だ").score == 1.0


def test_the_best_keeps_all_tries():
    low, high = Recovery(0.2, False, "a", tries=3), Recovery(0.9, False, "b", tries=2)
    leaked = Recovery(0.4, True, "c")
    assert best([low, high]) == dataclasses.replace(high, tries=5)
    assert best([low, high, leaked]) == dataclasses.replace(leaked, tries=6)
    assert best([]) == UNREACHED


def test_answers_are_those_of_the_generation_pass(model, tokenizer):
    target = Target("unlearned", model.eval(), tokenizer)
    found = ask(target, [Question(record, record.prompt) for record in RECORDS], ENCODING, Setting())
    texts = generate(model, encode(RECORDS, tokenizer, template="none"), tokenizer=tokenizer)
    assert [one.output for one in found] == [text.text for text in texts]
    assert [one.input for one in found] == [record.prompt for record in RECORDS]
    assert ask(target, [], ENCODING, Setting()) == []


def test_given_tokens_are_part_of_the_prompt_and_not_of_what_is_judged(model, tokenizer):
    target = Target("unlearned", model.eval(), tokenizer)
    row = encode(RECORDS[:1], tokenizer, template="none")[0]
    (found,) = ask(target, [Question(RECORDS[0], RECORDS[0].prompt, given=2)], ENCODING, Setting())
    moved = dataclasses.replace(row, prompt_length=row.prompt_length + 2)
    (text,) = ask_rows(target, [moved], [len(moved.labels) + 16], Setting())
    assert found.output == text
    said = tokenizer.decode(list(row.labels[:2])).strip()
    assert found.input == f"{RECORDS[0].prompt} ▸ {said}"
    (whole,) = ask(target, [Question(RECORDS[0], RECORDS[0].prompt, given=99)], ENCODING, Setting())
    assert (whole.score, whole.recovered) == (0.0, False), "no rest was left to recover"


def test_what_time_does_not_reach_is_said(model, tokenizer, monkeypatch):
    monkeypatch.setattr("expunge.attacks.answers._BATCH_TOKENS", (120, 120))
    target = Target("unlearned", model.eval(), tokenizer)
    prompts = [[record.prompt, f"Please. {record.prompt}"] for record in RECORDS]
    setting = Setting(clock=Over(3))
    found = try_prompts(target, Probes(RECORDS, encoding=ENCODING), setting, prompts)
    tried = [one.tries for one in found.recoveries]
    assert not found.complete
    assert 0 < sum(tried) < 2 * len(RECORDS)
    assert sorted(tried, reverse=True) == tried, "first prompts of the first records come first"
    assert "Stopped after 1 s" in found.notes[0]
    whole = try_prompts(target, Probes(RECORDS, encoding=ENCODING), Setting(), prompts)
    assert whole.complete
    assert [one.tries for one in whole.recoveries] == [2] * len(RECORDS)
    assert list(whole.curve) == [1.0, 2.0]


def test_a_prompt_that_fills_the_context_gets_an_empty_answer(tokenizer):
    model = conftest.build_model(context=16).eval()
    found = ask(
        Target("unlearned", model, tokenizer),
        [Question(RECORDS[0], "word " * 40)],
        Encoding("none", max_length=12),
        Setting(),
    )
    assert (found[0].output, found[0].recovered) == ("", False)


def test_number_of_prompts_and_cost(model, tokenizer):
    probes = Probes(RECORDS, encoding=ENCODING)
    with pytest.raises(ValueError, match=r"one list per record \(16\); got 1"):
        try_prompts(Target("unlearned", model, tokenizer), probes, Setting(), [["a"]])
    one = asking_cost(probes, [["abcd"] for _ in RECORDS])
    two = asking_cost(probes, [["abcd", "abcd"] for _ in RECORDS])
    assert (two.forward_tokens, two.generated_tokens) == (2 * one.forward_tokens, 2 * one.generated_tokens)
    assert one.generated_tokens > 16 * len(RECORDS)


def test_asking_leaves_the_model_as_it_was(model, tokenizer):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try_prompts(
        Target("unlearned", model, tokenizer),
        Probes(RECORDS[:2], encoding=ENCODING),
        Setting(precision="bf16"),
        [["Who?"], ["Where?"]],
    )
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
