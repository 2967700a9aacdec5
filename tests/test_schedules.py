"""Chunks: which rows meet in which micro-batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import conftest
from expunge.arguments import UnlearningArguments
from expunge.methods import Method, sugd
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
    again = ChunkPlan(chunks, forget, retain, batch, seed)
    assert again.retain(step + 1) == plan.retain(step + 1)


def test_impossible_chunks_are_refused():
    with pytest.raises(ValueError, match="must be at least 1; got 0, 7, 7"):
        Chunks(size=0)
    with pytest.raises(ValueError, match="must read forget and retain records"):
        Method("m", (NLL("forget"),), Constant((1.0,)), schedule=Chunks())


def test_sugd_trains_chunk_by_chunk(tokenizer, tmp_path):
    """The published weights: -1 and +1/2 a row, over chunk and ratio times as many retain rows."""
    method = sugd(chunk=3, ratio=2, passes=2)
    run = Unlearner(
        conftest.build_model(),
        UnlearningArguments(
            output_dir=str(tmp_path),
            bf16=False,
            use_cpu=True,
            template="none",
            max_steps=4,
            save_strategy="no",
            check_every=0,
            per_device_train_batch_size=3,
            train_last=1,
        ),
        method,
        tokenizer,
        conftest.rows()[:6],
        conftest.rows()[6:],
    )
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
