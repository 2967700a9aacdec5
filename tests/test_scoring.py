"""The scored pass against a naive float64 loop, one record at a time."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import build_model
from expunge import scoring
from expunge.collate import Encoded
from expunge.scoring import TokenScores, score
from naive import EOS, naive_scores, response_length, sharpen, taught, varied_rows


@pytest.fixture
def sharp() -> LlamaForCausalLM:
    return sharpen(build_model(seed=3))


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    return varied_rows(tokenizer)


@pytest.fixture(scope="module")
def knowing(encoded: list[Encoded]) -> tuple[LlamaForCausalLM, list[Encoded]]:
    return taught(encoded[1:]), encoded[1:]


@pytest.fixture
def projected(sharp: LlamaForCausalLM) -> Iterator[list[int]]:
    """Rows that each call of the output embedding gets."""
    sizes: list[int] = []
    handle = sharp.lm_head.register_forward_hook(lambda _m, args, _o: sizes.append(args[0][..., 0].numel()))
    yield sizes
    handle.remove()


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
    labels = sum(map(response_length, encoded))
    assert projected == [1, 1, 1, labels], "a check of one token; one token in the forward pass; the labels"


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


# --- moments and memory


def test_moments_equal_a_float64_loop(
    knowing: tuple[LlamaForCausalLM, list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = knowing
    monkeypatch.setattr(scoring, "_SOFTMAX_ELEMENTS", 7 * 384)
    asked = [i % 3 != 1 for i in range(len(rows))]
    double = copy.deepcopy(model).double().eval()
    for row, ours, wanted in zip(rows, score(model, rows, pad_id=EOS, moments=asked), asked, strict=True):
        if not wanted:
            assert ours.means is None
            assert ours.deviations is None
            continue
        with torch.no_grad():
            logits = double(input_ids=torch.tensor([row.input_ids])).logits[0]
        log_p = logits[row.prompt_length - 1 : -1].log_softmax(-1).numpy()
        mean = (np.exp(log_p) * log_p).sum(-1)
        deviation = np.sqrt((np.exp(log_p) * (log_p - mean[:, None]) ** 2).sum(-1))
        np.testing.assert_allclose(ours.means, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.deviations, deviation, rtol=1e-5, atol=1e-6)


def test_moments_of_a_model_that_knows_nothing(model: LlamaForCausalLM, encoded: list[Encoded]) -> None:
    nn.init.zeros_(model.lm_head.weight)
    for scores in score(model, encoded, pad_id=EOS, moments=True):
        np.testing.assert_allclose(scores.means, -np.log(384), rtol=1e-6)
        np.testing.assert_allclose(scores.deviations, 0.0, atol=1e-5)


def test_tokens_that_cannot_occur_count_nothing_in_the_moments() -> None:
    log_p = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    mean, deviation = scoring._moments(log_p)
    assert float(mean) == pytest.approx(-1.5 * np.log(2))
    assert float(deviation) == pytest.approx(0.5 * np.log(2))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


@pytest.mark.parametrize("moments", [False, True])
def test_no_batch_ever_has_its_logits_as_a_whole(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, moments: bool
) -> None:
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    rows = [Encoded(tuple(range(3, 43)), 4)] * 20
    monkeypatch.setattr(scoring, "_SOFTMAX_ELEMENTS", 16 * 49_152)
    with Largest() as largest:
        score(model, rows, pad_id=0, moments=moments)
    assert largest.elements == 16 * 49_152, "blocks of 16 positions of 720 labels and 800 tokens"


def test_logits_that_a_model_changes_are_taken_from_its_forward_pass(
    encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=384,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    capped = sharpen(Gemma2ForCausalLM(config))
    monkeypatch.setattr(scoring, "_LOGIT_ELEMENTS", 40 * 384)
    for row, ours in zip(encoded, score(capped, encoded, pad_id=EOS), strict=True):
        np.testing.assert_allclose(ours.log_probs, naive_scores(capped, row)[0], rtol=1e-5, atol=1e-5)


def test_the_benchmark_counts_labels_whose_argmax_a_batch_changes() -> None:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "scoring.py"
    spec = importlib.util.spec_from_file_location("scoring_benchmark", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.changed_argmax([[True, False], [True], [False]], [[True, True], [False]]) == 2
    counted = module.changed_argmax([np.array([True, False])], [[True, False]])
    assert (counted, type(counted)) == (0, int)  # JSON holds no other
