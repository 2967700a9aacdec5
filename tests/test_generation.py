"""The generation pass against a naive greedy loop, one record at a time."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import build_model
from expunge import prefixes as prefixes_module
from expunge.collate import Encoded
from expunge.generation import generate
from expunge.prefixes import Prefixes
from expunge.scoring import score
from naive import EOS, naive_generation, naive_scores, response_length, sharpen, taught, varied_rows


@pytest.fixture
def sharp() -> LlamaForCausalLM:
    return sharpen(build_model(seed=3))


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    return varied_rows(tokenizer)


@pytest.fixture(scope="module")
def knowing(encoded: list[Encoded]) -> tuple[LlamaForCausalLM, list[Encoded]]:
    return taught(encoded[1:]), encoded[1:]


def test_generation_equals_a_naive_greedy_loop(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    budgets = [response_length(row) + 5 for row in encoded]
    batched = generate(sharp, encoded, tokenizer=tokenizer, budgets=budgets, batch_tokens=200)
    single = [
        generate(sharp, [row], tokenizer=tokenizer, budgets=[budget])[0]
        for row, budget in zip(encoded, budgets, strict=True)
    ]
    naive = [naive_generation(sharp, row, budget) for row, budget in zip(encoded, budgets, strict=True)]
    assert [list(g.tokens) for g in batched] == naive
    assert batched == single
    for generation in batched:
        assert generation.text == tokenizer.decode(generation.tokens, skip_special_tokens=True).strip()
    assert len({g.text for g in batched}) > 4, "answers must differ for the comparison to mean anything"


def test_scores_shorten_the_generation_and_change_nothing(
    knowing: tuple[LlamaForCausalLM, list[Encoded]], tokenizer: PreTrainedTokenizerFast
) -> None:
    model, rows = knowing
    scores = score(model, rows, pad_id=EOS)
    reproduced = sum(s.reproduced for s in scores)
    assert 0 < reproduced < len(rows), "the model must know some responses and not others"
    assert any(0 < s.leading < len(s.matches) for s in scores), "and some in part"
    steps: list[int] = []
    finished: list[int] = []
    handle = model.register_forward_hook(lambda _m, _args, out: steps.append(len(out.logits)))
    plain = generate(model, rows, tokenizer=tokenizer)
    decoded = sum(steps)
    short = generate(model, rows, tokenizer=tokenizer, scores=scores, progress=finished.append)
    handle.remove()
    assert short == plain
    assert sum(steps) - decoded < 0.8 * decoded
    assert sum(g.tokens == row.labels for g, row in zip(plain, rows, strict=True)) == reproduced
    assert sum(finished) == len(rows)
    assert finished[0] == reproduced, "what is known needs no decoding"


def test_generation_is_greedy_whatever_the_model_is_set_to(
    sharp: LlamaForCausalLM,
    encoded: list[Encoded],
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = generate(sharp, encoded, tokenizer=tokenizer)
    settings = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        top_p=0.5,
        top_k=7,
        repetition_penalty=9.0,
        max_length=3,
        eos_token_id=EOS,
    )
    sharp.generation_config = settings
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert generate(sharp, encoded, tokenizer=tokenizer) == expected
    assert caplog.text == ""
    assert sharp.generation_config is settings


def test_generation_ends_at_any_end_the_model_names(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    free = generate(sharp, encoded[2:3], tokenizer=tokenizer)[0].tokens
    stop = free[2]
    assert stop not in (*free[:2], EOS)
    sharp.generation_config.eos_token_id = [EOS, stop]
    assert generate(sharp, encoded[2:3], tokenizer=tokenizer)[0].tokens == free[:3]


@pytest.mark.parametrize("budget", [1, 9, None])
def test_a_budget_bounds_answers_that_do_not_end(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast, budget: int | None
) -> None:
    seen: list[int] = []
    budgets = [budget] * len(encoded)
    generations = generate(sharp, encoded, tokenizer=tokenizer, budgets=budgets, progress=seen.append)
    most = [response_length(row) + 16 if budget is None else budget for row in encoded]
    assert min(m - len(g.tokens) for m, g in zip(most, generations, strict=True)) == 0
    assert sum(seen) == len(encoded)


def test_a_cut_response_is_compared_over_its_own_length(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    cut = [Encoded(row.input_ids[:-1], row.prompt_length) for row in encoded[1:]]
    generations = generate(sharp, cut, tokenizer=tokenizer)
    assert max(len(g.tokens) - response_length(r) for g, r in zip(generations, cut, strict=True)) == 0


def test_learned_positions_end_the_answer_with_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=384, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=EOS
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
        model.transformer.wte.weight.mul_(20)
    generator = torch.Generator().manual_seed(1)
    rows = [
        Encoded((*torch.randint(2, 384, (n,), generator=generator).tolist(), EOS), n // 2)
        for n in (8, 19, 28, 31)
    ]
    batched = generate(model, rows, tokenizer=tokenizer)
    assert batched == [generate(model, [row], tokenizer=tokenizer)[0] for row in rows]
    assert [list(g.tokens) for g in batched] == [
        naive_generation(model, r, min(response_length(r) + 16, 32 - r.prompt_length)) for r in rows
    ]
    for ours, row in zip(score(model, rows, pad_id=EOS), rows, strict=True):
        np.testing.assert_allclose(ours.log_probs, naive_scores(model, row)[0], rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match="`budgets` must be at least 1; got 0"):
        generate(sharp, encoded[:2], tokenizer=tokenizer, budgets=[None, 0])
    with pytest.raises(ValueError, match="row 0 has 0 of 2"):
        generate(sharp, [Encoded((4, EOS), 0)], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="same order"):
        generate(sharp, encoded, tokenizer=tokenizer, scores=score(sharp, encoded[::-1], pad_id=EOS))
    with pytest.raises(ValueError, match="got Linear"):
        generate(nn.Linear(1, 1), encoded, tokenizer=tokenizer)


def test_short_answers_do_not_wait_for_long_ones(
    sharp: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Encoded((*range(2, 2 + 10 + n), EOS), 10) for n in (50, 1, 50, 1, 50, 1)]
    limits: list[int] = []
    plain = LlamaForCausalLM.generate

    def spy(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        limits.append(kwargs["max_new_tokens"])
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", spy)
    generations = generate(sharp, rows, tokenizer=tokenizer, budgets=[53, 4] * 3, batch_tokens=3 * 70)
    assert limits == [53, 4]
    assert max(len(g.tokens) for g in generations[1::2]) <= 4


def test_finished_answers_leave_the_batch(
    knowing: tuple[LlamaForCausalLM, list[Encoded]], tokenizer: PreTrainedTokenizerFast
) -> None:
    model, rows = knowing
    sizes: list[int] = []
    handle = model.register_forward_hook(lambda _m, _args, out: sizes.append(len(out.logits)))
    together = generate(model, rows, tokenizer=tokenizer, budgets=[40] * len(rows), batch_tokens=10_000)
    handle.remove()
    alone = [generate(model, [row], tokenizer=tokenizer, budgets=[40])[0] for row in rows]
    assert together == alone
    lengths = sorted(len(g.tokens) for g in alone)
    assert lengths[0] < lengths[-1] // 2, "some answers must end early"
    assert sizes.pop(0) == 1, "the pass over the prompts gives one token's logits"
    assert sizes[0] == len(rows)
    assert sizes == sorted(sizes, reverse=True), "one batch that only shrinks"
    assert sum(sizes) < 0.9 * len(rows) * len(sizes)
    assert sum(sizes) - sum(lengths) <= len(rows) // 8 * len(sizes), "an eighth may wait for others"


@pytest.mark.parametrize("state", ["sliding", "recurrent"])
def test_other_kinds_of_state_give_the_same_text(tokenizer: PreTrainedTokenizerFast, state: str) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 384, "hidden_size": 48, "num_hidden_layers": 2, "bos_token_id": 0}
    model: Any
    if state == "sliding":
        model = MistralForCausalLM(
            MistralConfig(
                **small,
                intermediate_size=96,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=8,
                eos_token_id=EOS,
            )
        )
    else:
        model = MambaForCausalLM(MambaConfig(**small, state_size=4, eos_token_id=EOS))
    sharpen(model)
    rows = [Encoded((*range(5, 5 + n), EOS), n - 2) for n in (6, 9, 9, 14)]
    budgets = [3, 20, 9, 12]
    together = generate(model, rows, tokenizer=tokenizer, budgets=budgets)
    assert [list(g.tokens) for g in together] == [
        naive_generation(model, row, budget) for row, budget in zip(rows, budgets, strict=True)
    ]
    assert len({g.tokens for g in together}) == len(rows)


def test_attention_is_what_it_was_afterwards(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    used: list[str] = []
    handle = sharp.register_forward_hook(lambda m, _args, _out: used.append(m.config._attn_implementation))
    generate(sharp, encoded, tokenizer=tokenizer)
    score(sharp, encoded, pad_id=EOS)
    handle.remove()
    assert set(used[:-1]) == {"sdpa", "eager"}
    assert (used[0], used[-1]) == ("sdpa", "eager")
    assert sharp.config._attn_implementation == "eager"


def test_a_prompt_alone_is_answered_within_its_budget(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = [Encoded(row.input_ids[: row.prompt_length], row.prompt_length) for row in encoded]
    budgets = [7] * len(encoded)
    expected = generate(sharp, encoded, tokenizer=tokenizer, budgets=budgets)
    assert generate(sharp, bare, tokenizer=tokenizer, budgets=budgets) == expected
    with pytest.raises(ValueError, match="a response or a budget; row 0"):
        generate(sharp, bare, tokenizer=tokenizer)


@pytest.mark.parametrize("budget", [1, 3, 200])
def test_known_tokens_count_towards_the_budget(
    knowing: tuple[LlamaForCausalLM, list[Encoded]], tokenizer: PreTrainedTokenizerFast, budget: int
) -> None:
    model, rows = knowing
    budgets, scores = [budget] * len(rows), score(model, rows, pad_id=EOS)
    plain = generate(model, rows, tokenizer=tokenizer, budgets=budgets)
    assert generate(model, rows, tokenizer=tokenizer, budgets=budgets, scores=scores) == plain
    assert max(len(g.tokens) for g in plain) <= budget


def test_the_scored_pass_leaves_nothing_to_do_but_steps(
    knowing: tuple[LlamaForCausalLM, list[Encoded]], tokenizer: PreTrainedTokenizerFast
) -> None:
    model, rows = knowing
    prefixes = Prefixes(model, rows[3:])
    scores = score(model, rows, pad_id=EOS, batch_tokens=100, prefixes=prefixes)
    unfinished = [row for row, s in zip(rows[3:], scores[3:], strict=True) if not s.reproduced]
    assert 0 < len(prefixes.kept) <= len(unfinished)
    widths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _m, _args, words: widths.append(words["input_ids"].shape[1]), with_kwargs=True
    )
    found = generate(model, rows[3:], tokenizer=tokenizer, scores=scores[3:], prefixes=prefixes)
    handle.remove()
    assert set(widths) == {1}
    assert found == generate(model, rows[3:], tokenizer=tokenizer)
    assert (prefixes.kept, prefixes.bytes) == ({}, 0)


@pytest.mark.parametrize("most", [0, 20_000])
def test_what_is_not_kept_is_computed_again(
    knowing: tuple[LlamaForCausalLM, list[Encoded]],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    model, rows = knowing
    expected = generate(model, rows, tokenizer=tokenizer)
    monkeypatch.setattr(prefixes_module, "_MOST_BYTES", most)
    prefixes = Prefixes(model, rows)
    scores = score(model, rows, pad_id=EOS, prefixes=prefixes)
    assert prefixes.bytes < most + 20_000
    kept = len(prefixes.kept)
    assert (kept > 0) == (most > 0)
    assert generate(model, rows, tokenizer=tokenizer, scores=scores, prefixes=prefixes) == expected
    assert kept < sum(not s.reproduced for s in scores)


def test_a_prompt_of_one_token_has_no_beginning(
    sharp: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [Encoded((5, 6, EOS), 1), Encoded((9, 10, 11, EOS), 3), Encoded((12, 6, EOS), 1)]
    for chosen in (rows, rows[::2]):
        prefixes = Prefixes(sharp, chosen)
        scores = score(sharp, chosen, pad_id=EOS, prefixes=prefixes)
        found = generate(
            sharp, chosen, tokenizer=tokenizer, budgets=[6] * len(chosen), scores=scores, prefixes=prefixes
        )
        assert [list(g.tokens) for g in found] == [naive_generation(sharp, row, 6) for row in chosen]
