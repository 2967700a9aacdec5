"""All parts of a data set in one pass each, and the same tables from disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import build_model, build_tokenizer
from expunge import UsageError, table_cache, tables
from expunge.collate import Encoded
from expunge.generation import generate
from expunge.gradients import gradient_norms
from expunge.scoring import score
from expunge.tables import Part, Tables, examine, work
from naive import EOS, sharpen, varied_rows


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    return varied_rows(tokenizer)


@pytest.fixture(scope="module")
def sharp() -> LlamaForCausalLM:
    return sharpen(build_model(seed=3))


@pytest.fixture(scope="module")
def parts(rows: list[Encoded]) -> dict[str, Part]:
    cut = Encoded(rows[1].input_ids[:-2], rows[1].prompt_length)
    return {
        "scored": Part(rows[:5], moments=True),
        "both": Part([*rows[5:8], cut], new_tokens=None, gradients=True),
        "none": Part([]),
        "answered": Part(rows[8:12], scored=False, new_tokens=7),
    }


def same(a: Tables, b: Tables) -> bool:
    """Bit by bit."""
    if list(a) != list(b):
        return False
    for one, two in zip(a.values(), b.values(), strict=True):
        if (one.generations, one.gradient_norms, one.cut) != (two.generations, two.gradient_norms, two.cut):
            return False
        for x, y in zip(one.scores, two.scores, strict=True):
            for name in ("log_probs", "matches", "means", "deviations"):
                u, v = getattr(x, name), getattr(y, name)
                if (u is None) != (v is None) or (u is not None and not np.array_equal(u, v)):
                    return False
    return (a.scored_tokens, a.generated_tokens) == (b.scored_tokens, b.generated_tokens)


# --- tables


def test_every_part_gets_what_it_asked_for(
    sharp: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, parts: dict[str, Part], rows: list[Encoded]
) -> None:
    seen: list[int] = []
    found = examine(sharp, tokenizer, parts, batch_tokens=300, progress=seen.append)
    assert list(found) == list(parts)
    scored, both, none, answered = found.values()
    alone = score(sharp, rows[:5], pad_id=EOS, moments=True)
    for ours, expected in zip(scored.scores, alone, strict=True):
        np.testing.assert_allclose(ours.log_probs, expected.log_probs, atol=1e-5)
        np.testing.assert_allclose(ours.means, expected.means, atol=1e-5)
    assert (scored.generations, scored.gradient_norms) == ([], [])
    assert (len(both.scores), len(both.gradient_norms)) == (4, 4)
    assert both.scores[0].means is None
    assert both.generations == generate(sharp, parts["both"].rows, tokenizer=tokenizer)
    assert both.cut == {3: tokenizer.decode(rows[1].labels[:-2])}
    assert (none.scores, none.generations) == ([], [])
    assert answered.scores == []
    assert answered.generations == generate(sharp, rows[8:12], tokenizer=tokenizer, budgets=[7] * 4)
    assert sum(seen) == work(parts) == 5 + 3 * 4 + 4
    assert found.scored_tokens == sum(len(r.input_ids) for r in (*parts["scored"].rows, *parts["both"].rows))
    assert found.generated_tokens == sum(len(g.tokens) for t in found.values() for g in t.generations)
    assert set(found.stages) == {"scoring", "generation", "gradients"}
    assert found.seconds == pytest.approx(sum(found.stages.values()))


def test_one_pass_of_each_kind_whatever_the_number_of_parts(
    sharp: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, Part],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for name, function in (("score", score), ("generate", generate), ("gradient_norms", gradient_norms)):
        spy = lambda *a, name=name, function=function, **k: calls.append(name) or function(*a, **k)  # noqa: E731
        monkeypatch.setattr(tables, name, spy)
    examine(sharp, tokenizer, parts)
    assert calls == ["score", "generate", "gradient_norms"]


# --- gradients


def test_gradient_norms_equal_float64_backward_passes(sharp: LlamaForCausalLM, rows: list[Encoded]) -> None:
    sharp.requires_grad_(True)
    sharp.model.norm.weight.requires_grad_(False)
    held = torch.ones_like(sharp.lm_head.weight)
    sharp.lm_head.weight.grad = held
    ours = gradient_norms(sharp, rows[:4])
    assert not sharp.model.norm.weight.requires_grad
    assert sharp.lm_head.weight.grad is held
    sharp.lm_head.weight.grad = None
    double = build_model().double()
    double.load_state_dict({name: value.double() for name, value in sharp.state_dict().items()})
    for row, norm in zip(rows, ours, strict=False):
        double.zero_grad()
        labels = torch.tensor([(-100,) * row.prompt_length + row.labels])
        double.eval()(input_ids=torch.tensor([row.input_ids]), labels=labels).loss.backward()
        squares = [float((p.grad**2).sum()) for p in double.parameters()]
        assert norm == pytest.approx(sum(squares) ** 0.5, rel=1e-4)
    assert len({round(norm, 3) for norm in ours}) == 4


# --- on disk


def cached(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, Part],
    folder: Path,
    **settings: Any,
) -> Tables:
    return examine(model, tokenizer, parts, cache=folder, **settings)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per scored pass."""
    calls: list[str] = []
    monkeypatch.setattr(tables, "score", lambda *a, **k: calls.append("score") or score(*a, **k))
    return calls


def test_the_same_question_is_asked_once(
    sharp: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, Part],
    tmp_path: Path,
    passes: list[str],
) -> None:
    first = cached(sharp, tokenizer, parts, tmp_path / "a" / "cache")
    seen: list[int] = []
    second = cached(sharp, tokenizer, parts, tmp_path / "a" / "cache", progress=seen.append)
    assert passes == ["score"]
    assert same(first, second)
    assert second.seconds == first.seconds
    assert sum(seen) == work(parts)


def test_it_is_asked_again_when_anything_that_decides_it_changes(
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, Part],
    tmp_path: Path,
    passes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(seed=3)
    small = {"scored": parts["scored"]}
    settings: dict[str, Any] = {}

    def ask() -> int:
        before = len(passes)
        cached(model, tokenizer, small, tmp_path, **settings)
        return len(passes) - before

    assert (ask(), ask()) == (1, 0)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    assert ask() == 1, "weights"
    model.config.rms_norm_eps = 1e-3
    assert ask() == 1, "configuration"
    rows = small["scored"].rows
    small = {
        "scored": Part([*rows[:-1], Encoded(rows[-1].input_ids, rows[-1].prompt_length + 1)], moments=True)
    }
    assert ask() == 1, "where a response begins"
    small = {"scored": Part(small["scored"].rows)}
    assert ask() == 1, "what is asked"
    small = {"renamed": small["scored"]}
    assert ask() == 1, "name of a part"
    settings["precision"] = "bf16"
    assert ask() == 1, "precision"
    settings["batch_tokens"] = 64
    assert ask() == 1, "batches"
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    assert ask() == 1, "tokenizer"
    monkeypatch.setattr(table_cache, "_code_hash", lambda: "another")
    assert (ask(), ask()) == (1, 0), "code"


def test_files_are_private(
    sharp: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, parts: dict[str, Part], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    mask = os.umask(0)
    try:
        cached(sharp, tokenizer, parts, folder)
    finally:
        os.umask(mask)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "garbage", "pickle", "short"])
def test_a_damaged_file_is_made_again(
    sharp: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, Part],
    tmp_path: Path,
    passes: list[str],
    damage: str,
) -> None:
    small = {"scored": parts["scored"]}
    whole = cached(sharp, tokenizer, small, tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
            "empty": b"",
            "garbage": b"not a table" * 10,
            "pickle": signed(b"\x80\x04N."),
            "short": signed(table_cache._pack(fewer(whole))),
        }[damage]
    )
    again = cached(sharp, tokenizer, small, tmp_path)
    assert passes == ["score", "score"]
    assert same(again, whole)
    assert file.read_bytes()[32:] == table_cache._pack(again)
    cached(sharp, tokenizer, small, tmp_path)
    assert passes == ["score", "score"]


def signed(payload: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(payload).digest() + payload


def fewer(whole: Tables) -> Tables:
    """One row less than was asked about."""
    table = whole["scored"]
    return Tables({"scored": tables.Table(table.scores[:-1], [], [])}, 1.0, 1, 0)


def test_a_write_that_fails_leaves_nothing(
    sharp: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    parts: dict[str, Part],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        cached(sharp, tokenizer, parts, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_no_folder_is_refused(
    sharp: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, parts: dict[str, Part], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--cache must be a folder"):
        cached(sharp, tokenizer, parts, tmp_path / "file")
