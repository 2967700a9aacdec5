"""The scored pass and the generation pass against naive loops, one record at a time."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import build_model, rows
from expunge import scoring
from expunge.collate import Encoded, encode
from expunge.records import read_records
from expunge.scoring import TokenScores, evaluating, generate, score

EOS = 1


def sharpen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Random weights large enough that predictions differ from row to row and from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


@pytest.fixture
def sharp() -> LlamaForCausalLM:
    return sharpen(build_model(seed=3))


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Sixteen rows of different lengths, one of them with the pad token inside prompt and response."""
    records = [
        {**row, "response": ", ".join([row["response"]] * (1 + i % 4))} for i, row in enumerate(rows())
    ]
    out = encode(read_records(records, name="forget"), tokenizer)
    first = out[0]
    out[0] = Encoded((5, EOS, *first.input_ids[:-3], EOS, 7, EOS), first.prompt_length + 2)
    assert len({len(row.input_ids) for row in out}) >= 4
    return out


@pytest.fixture(scope="module")
def knowing(encoded: list[Encoded]) -> tuple[LlamaForCausalLM, list[Encoded]]:
    """A model that gives some of the responses, or their beginnings."""
    model, rows = build_model(), encoded[1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(45):
        loss = sum(
            model(
                input_ids=torch.tensor([row.input_ids]),
                labels=torch.tensor([(-100,) * row.prompt_length + row.labels]),
            ).loss
            for row in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, rows


def naive_scores(model: nn.Module, row: Encoded) -> tuple[list[float], list[bool]]:
    """Token by token, each from its own forward pass over what comes before it, in float64."""
    double = copy.deepcopy(model).double().eval()
    log_probs, matches = [], []
    for position in range(row.prompt_length, len(row.input_ids)):
        with torch.no_grad():
            logits = double(input_ids=torch.tensor([row.input_ids[:position]])).logits[0, -1]
        target = row.input_ids[position]
        log_probs.append(float(logits[target] - logits.logsumexp(0)))
        matches.append(int(logits.argmax()) == target)
    return log_probs, matches


def naive_generation(model: nn.Module, row: Encoded, limit: int) -> list[int]:
    ids = list(row.input_ids[: row.prompt_length])
    model.eval()
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[row.prompt_length :]


def response_length(row: Encoded) -> int:
    return len(row.input_ids) - row.prompt_length


class Casts(TorchDispatchMode):
    """Counts how often each parameter is cast to bf16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.counts.update([self.names[args[0].data_ptr()]] if args[0].data_ptr() in self.names else [])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def projected(sharp: LlamaForCausalLM) -> Iterator[list[int]]:
    """Rows that each call of the output embedding gets."""
    sizes: list[int] = []
    handle = sharp.lm_head.register_forward_hook(lambda _m, args, _o: sizes.append(args[0][..., 0].numel()))
    yield sizes
    handle.remove()


# --- scores


def test_scores_equal_a_float64_loop_over_single_records(
    knowing: tuple[LlamaForCausalLM, list[Encoded]],
) -> None:
    model, rows = knowing
    scores = score(model, rows, pad_id=EOS, batch_tokens=150)
    matched: list[bool] = []
    for row, ours in zip(rows, scores, strict=True):
        log_probs, matches = naive_scores(model, row)
        assert ours.log_probs.dtype == np.float64
        np.testing.assert_allclose(ours.log_probs, log_probs, rtol=1e-6, atol=1e-6)
        assert ours.matches.tolist() == matches
        assert ours.nll == pytest.approx(-np.mean(log_probs), rel=1e-6)
        matched += matches
    assert 0 < sum(matched) < len(matched), "the model must predict some tokens and not others"


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_scores_do_not_depend_on_the_batch(
    sharp: LlamaForCausalLM, encoded: list[Encoded], batch_tokens: int
) -> None:
    single = [score(sharp, [row], pad_id=EOS)[0] for row in encoded]
    batched = score(sharp, encoded, pad_id=0, batch_tokens=batch_tokens)
    for one, many in zip(single, batched, strict=True):
        np.testing.assert_allclose(many.log_probs, one.log_probs, atol=1e-5)
        assert (many.matches == one.matches).all()


def test_a_model_that_knows_nothing_is_uniform(model: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    nn.init.zeros_(model.lm_head.weight)
    for scores in score(model, encoded, pad_id=EOS):
        np.testing.assert_allclose(scores.log_probs, -np.log(384), rtol=1e-6)
        assert scores.probability == pytest.approx(1 / 384)
        assert not scores.reproduced


def test_scores_of_one_response_are_summed_up() -> None:
    half = TokenScores(np.log([0.5, 0.125]), np.array([True, False]))
    assert (half.nll, half.probability) == (pytest.approx(np.log(4)), pytest.approx(0.25))
    assert (half.reproduced, half.leading) == (False, 1)
    whole = TokenScores(np.log([0.5, 0.125]), np.array([True, True]))
    assert (whole.reproduced, whole.leading) == (True, 2)
    late = TokenScores(np.zeros(3), np.array([False, True, True]))
    assert (late.reproduced, late.leading) == (False, 0)


def test_only_labels_are_projected_to_the_vocabulary(
    sharp: LlamaForCausalLM, encoded: list[Encoded], projected: list[int]
) -> None:
    score(sharp, encoded, pad_id=EOS)
    assert projected == [sum(map(response_length, encoded))], "one batch, its labels alone"


def test_logits_are_bounded_whatever_the_token_budget(
    sharp: LlamaForCausalLM, encoded: list[Encoded], projected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(sharp, encoded, pad_id=EOS)
    projected.clear()
    monkeypatch.setattr(scoring, "_LOGIT_ELEMENTS", 40 * 384)
    monkeypatch.setattr(scoring, "_SOFTMAX_ELEMENTS", 7 * 384)
    bounded = score(sharp, encoded, pad_id=EOS)
    assert len(projected) > 1
    assert max(projected) <= 40
    for a, b in zip(expected, bounded, strict=True):
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)


def test_progress_counts_every_row_once(sharp: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    seen: list[int] = []
    score(sharp, encoded, pad_id=EOS, batch_tokens=150, progress=seen.append)
    assert len(seen) > 1
    assert sum(seen) == len(encoded)


def test_no_rows_have_no_scores(sharp: LlamaForCausalLM) -> None:
    assert score(sharp, [], pad_id=EOS) == []


@pytest.mark.parametrize("row", [Encoded((5, 6), 2), Encoded((5, 6), 0)])
def test_a_row_without_prompt_or_response_is_refused(sharp: LlamaForCausalLM, row: Encoded) -> None:
    with pytest.raises(ValueError, match=r"row 1 has [02] of 2 tokens"):
        score(sharp, [Encoded((5, 6), 1), row], pad_id=EOS)


# --- state of the model


def test_the_model_is_left_as_it_was(
    sharp: LlamaForCausalLM, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    sharp.train()
    sharp.model.layers[0].eval()
    sharp.model.embed_tokens.weight.requires_grad_(False)
    sharp.forward = sharp.forward
    modes = [module.training for module in sharp.modules()]
    gradients = [parameter.requires_grad for parameter in sharp.parameters()]
    forward, config = sharp.forward, sharp.generation_config
    for _ in range(2):
        with pytest.raises(RuntimeError, match="provoked"):
            score(sharp, encoded, pad_id=EOS, precision="bf16", progress=fail)
        score(sharp, encoded, pad_id=EOS, precision="bf16")
        with pytest.raises(RuntimeError, match="provoked"):
            generate(sharp, encoded, tokenizer=tokenizer, precision="bf16", progress=fail)
    assert [module.training for module in sharp.modules()] == modes
    assert [parameter.requires_grad for parameter in sharp.parameters()] == gradients
    assert sharp.forward is forward
    assert sharp.generation_config is config


def fail(_rows: int) -> None:
    raise RuntimeError("provoked")


def test_dropout_is_off(sharp: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    quiet = score(sharp, encoded, pad_id=EOS)
    for layer in sharp.model.layers:
        layer.self_attn.attention_dropout = 0.5
    sharp.train()
    for a, b in zip(quiet, score(sharp, encoded, pad_id=EOS), strict=True):
        np.testing.assert_array_equal(a.log_probs, b.log_probs)


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_casts_each_weight_once(sharp: LlamaForCausalLM, encoded: list[Encoded], frozen: bool) -> None:
    sharp.requires_grad_(not frozen)
    with Casts(sharp) as casts, evaluating(sharp, "bf16"):
        for row in encoded[:3]:
            sharp(input_ids=torch.tensor([row.input_ids]))
    assert len(casts.counts) > 10
    assert set(casts.counts.values()) == {1}


def test_bf16_scores_are_near_and_training_goes_on(sharp: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    exact, rough = score(sharp, encoded, pad_id=EOS), score(sharp, encoded, pad_id=EOS, precision="bf16")
    errors = np.concatenate([a.log_probs - b.log_probs for a, b in zip(exact, rough, strict=True)])
    assert 0 < np.abs(errors).max() < 0.5
    ids = torch.tensor([encoded[1].input_ids])
    with torch.autocast("cpu", torch.bfloat16):
        sharp(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in sharp.parameters())


def test_fp32_means_fp32_under_someone_elses_autocast(
    sharp: LlamaForCausalLM, encoded: list[Encoded]
) -> None:
    exact = score(sharp, encoded, pad_id=EOS)
    with torch.autocast("cpu", torch.bfloat16):
        inside = score(sharp, encoded, pad_id=EOS)
    for a, b in zip(exact, inside, strict=True):
        np.testing.assert_array_equal(a.log_probs, b.log_probs)


# --- generation


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
    assert limits == [4, 53]
    assert max(len(g.tokens) for g in generations[1::2]) <= 4
