"""Chunks: which rows meet in which micro-batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import conftest
from expunge.arguments import UnlearningArguments
from expunge.methods import Method, guard, sugd
from expunge.objectives import NLL
from expunge.schedules import ChunkPlan, Chunks
from expunge.unlearner import Unlearner
from expunge.weightings import Constant


@given(
    forget=st.integers(1, 40),
    retain=st.integers(1, 60),
    size=st.integers(1, 12),
    ratio=st.integers(1, 4),
    passes=st.integers(1, 3),
    batch=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_every_chunk_has_its_passes_and_its_retain_rows(forget, retain, size, ratio, passes, batch, seed):
    chunks = Chunks(size, ratio, passes)
    plan = ChunkPlan(chunks, forget, retain, batch, seed)
    step, drawn = 0, []
    for part in plan.parts:
        batches = -(-len(part) // batch)
        for _ in range(passes):
            steps = range(step, step + batches)
            assert sorted(row for s in steps for row in plan.forget(s)) == sorted(part.tolist())
            theirs = [row for s in steps for row in plan.retain(s)]
            assert len(theirs) == ratio * len(part)
            assert all(0 < len(plan.forget(s)) <= batch for s in steps)
            step += batches
        drawn += sorted(theirs)
    assert step == chunks.steps(forget, batch)
    counts = [drawn.count(row) for row in range(retain)]
    assert max(counts) - min(counts) <= 1, "retain rows are drawn cyclically"
    assert sorted(row for part in plan.parts for row in part.tolist()) == list(range(forget))
    for steps in (0, 1, step // 2, step - 1, step, step + 1):
        read = {row for s in range(steps) for row in plan.forget(s)}
        assert chunks.unread(forget, batch, steps) == forget - len(read)
    again = ChunkPlan(chunks, forget, retain, batch, seed)
    assert again.retain(step + 1) == plan.retain(step + 1)


def test_impossible_chunks_are_refused():
    with pytest.raises(ValueError, match="must be at least 1; got 0, 7, 7"):
        Chunks(size=0)
    with pytest.raises(ValueError, match="must read forget and retain records"):
        Method("m", (NLL("forget"),), Constant((1.0,)), schedule=Chunks())


def engine(tokenizer, folder, method, **settings):
    """On six forget rows, three of them to a micro-batch."""
    usual = {
        "bf16": False,
        "use_cpu": True,
        "template": "none",
        "max_steps": 4,
        "save_strategy": "no",
        "check_every": 0,
        "per_device_train_batch_size": 3,
    }
    args = UnlearningArguments(output_dir=str(folder), **usual | settings)
    return Unlearner(
        conftest.build_model(), args, method, tokenizer, conftest.rows()[:6], conftest.rows()[6:]
    )


@pytest.mark.parametrize(("steps", "parts", "missed", "whole"), [(3, 1, 3, 6), (1, 2, 3, 3), (1, 1, 3, 6)])
def test_a_note_counts_forget_rows_that_the_run_does_not_come_to(
    tokenizer, tmp_path, steps, parts, missed, whole
):
    method = sugd(chunk=3, ratio=2, passes=3)
    run = engine(tokenizer, tmp_path, method, max_steps=steps, gradient_accumulation_steps=parts)
    (note,) = run.notes
    assert note == (
        f"{missed} of 6 forget records are never trained on: sugd takes them chunk by chunk, and "
        f"max_steps={steps} ends in its first round. A whole one takes max_steps={whole}."
    )
    seen = [micro["forget"]["input_ids"].tolist() for micro in run.get_train_dataloader()]
    assert len({tuple(row) for rows in seen for row in rows}) == 6 - missed


@pytest.mark.parametrize("steps", [4, 6])
def test_nothing_is_said_where_every_forget_row_is_read(tokenizer, tmp_path, steps):
    assert engine(tokenizer, tmp_path, sugd(chunk=3, ratio=2, passes=3), max_steps=steps).notes == []


def test_sugd_has_the_guard_of_the_others(tokenizer, tmp_path):
    assert sugd(tolerance=0.1).budget == guard(0.1)
    method = sugd(retain_weight=0.0, tolerance=0.1)
    run = engine(tokenizer, tmp_path, method, learning_rate=0.01, max_steps=20)
    run.train()
    assert run.stop.reason == "retain-budget"
    assert run.stop.restored_step == 0


def test_sugd_trains_chunk_by_chunk(tokenizer, tmp_path):
    """The published weights: -1 and +1/2 a row, over chunk and ratio times as many retain rows."""
    method = sugd(chunk=3, ratio=2, passes=2)
    run = engine(tokenizer, tmp_path, method, train_last=1)
    frozen = {n: p.detach().clone() for n, p in run.model.named_parameters() if ".layers.1." not in n}
    seen = []
    for micro in run.get_train_dataloader():
        seen.append({tuple(row) for row in micro["forget"]["input_ids"][:, :8].tolist()})
        assert len(micro["retain"]["labels"]) == 6
    assert seen[0] == seen[1] != seen[2] == seen[3]
    run.train()
    assert run.history[0].weights == {
        "-nll(forget)": pytest.approx(1 / 3),
        "nll(retain)": pytest.approx(1 / 3),
    }
    assert all(p.equal(frozen[n]) for n, p in run.model.named_parameters() if n in frozen)
