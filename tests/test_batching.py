"""Batches: every row once per pass, little padding, the same rows for the same step."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.batching import BySource, Draws, RowStream, Sources, concatenate
from expunge.collate import Encoded, collate


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
    number=st.integers(0, 3),
)
def test_every_pass_visits_every_row_once(lengths, size, seed, number):
    stream = RowStream(lengths, size, (seed,))
    start = number * stream.batches_per_pass
    batches = [stream[start + i] for i in range(stream.batches_per_pass)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_a_step_has_the_same_rows_however_it_is_reached():
    lengths = list(range(1, 41))
    forward = RowStream(lengths, 4, (7, 0))
    walked = [forward[i] for i in range(30)]
    assert RowStream(lengths, 4, (7, 0))[29] == walked[29]
    assert RowStream(lengths, 4, (8, 0))[29] != walked[29]
    assert walked[:10] != walked[10:20]


def test_grouping_by_length_saves_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = (20 + 60 * torch.rand(320, generator=generator)).int().tolist()

    def padded(group: int) -> float:
        stream = RowStream(lengths, 8, (0,), group=group)
        batches = [stream[i] for i in range(stream.batches_per_pass)]
        return sum(max(lengths[r] for r in b) * len(b) for b in batches) / sum(lengths)

    assert padded(8) < 1.1 < 1.3 < padded(1)


def test_draws_and_collation_keep_data_sets_apart():
    rows = {"forget": [Encoded((5, 6, 1), 1)] * 4, "retain": [Encoded((7, 8, 9, 1), 2)] * 6}
    streams = {
        name: RowStream([len(r.input_ids) for r in found], 2, (0, i))
        for i, (name, found) in enumerate(rows.items())
    }
    draws = Draws(streams, 4)
    assert len(list(draws)) == len(draws) == 4
    sources = Sources(rows)
    batch = BySource(1)([sources[item] for item in next(iter(draws))])
    assert {name: tuple(b["input_ids"].shape) for name, b in batch.items()} == {
        "forget": (2, 3),
        "retain": (2, 4),
    }


def test_concatenation_pads_on_the_right_without_hiding_tokens():
    short, long = collate([Encoded((5, 1), 1)], 1), collate([Encoded((7, 8, 9, 1), 2)], 1)
    both = concatenate([short, long], 1)
    assert both["input_ids"].tolist() == [[5, 1, 1, 1], [7, 8, 9, 1]]
    assert both["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert both["labels"].tolist() == [[-100, 1, -100, -100], [-100, -100, 9, 1]]
