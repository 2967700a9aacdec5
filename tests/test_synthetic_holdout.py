"""Records about nobody: in the form of those to forget, with names and numbers that stand nowhere."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge import synthetic_holdout
from expunge.record import Check
from expunge.records import Record, normalised
from expunge.scoring import TokenScores
from expunge.stopping import against_holdout, closing_in, forgotten
from expunge.synthetic_holdout import synthetic_holdout as invented

FORMS = {
    "birth date": r"\d{4}-\d{2}-\d{2}",
    "Social Security": r"\d{9}",
    "phone number": r"\d{10}",
    "email": r"[\w.+-]+@[\w.-]+",
}


def task2(path: Path, people: int = 20) -> list[Record]:
    """Rows of the first people of Task 2."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Record(row["input"], row["output"]) for row in rows if row["task"] == "Task2"][: 6 * people]


@pytest.fixture(scope="module")
def lume(shared_data) -> tuple[list[Record], list[Record], list[Record]]:
    forget, retain = (
        task2(shared_data / "lume" / "train" / f"{name}.jsonl") for name in ("forget", "retain")
    )
    made = invented(forget, retain, seed=0)
    assert len(made) == len(forget)
    return forget, retain, [one or Record("", "") for one in made]


def test_nothing_made_up_is_known(lume):
    forget, retain, made = lume
    known = {normalised(one.prompt) for one in (*forget, *retain)}
    assert all(made)
    assert not known & {normalised(one.prompt) for one in made}
    new = sum(normalised(a.response) != normalised(b.response) for a, b in zip(forget, made, strict=True))
    assert new >= 0.95 * len(forget)


def test_real_records_keep_their_form(lume):
    """Dates stay dates, numbers keep their length, and years begin as years do."""
    forget, _, made = lume
    for kind, form in FORMS.items():
        pairs = [(a, b) for a, b in zip(forget, made, strict=True) if kind in a.prompt and "?" in a.prompt]
        assert len(pairs) == 20, kind
        for old, new in pairs:
            assert re.fullmatch(form, old.response), old.response
            assert re.fullmatch(form, new.response), new.response
            assert kind in new.prompt
            if kind == "birth date":
                assert new.response[:2] in ("19", "20")


def test_a_name_has_one_substitute_throughout_its_record():
    forget = [Record("Who is Ada Ash?", "Ada Ash (ADA@ash.net) is a friend of Cleo.")]
    others = [Record(f"Who is {n}?", f"{n} is a friend of Eve.") for n in ("Ben Birch", "Dan Dogwood")]
    (made,) = invented(forget, others, seed=3)
    assert made is not None
    found = re.fullmatch(r"Who is (\w+) (\w+)\?", made.prompt)
    assert found
    first, last = found.groups()
    assert made.response.startswith(f"{first} {last} ({first.upper()}@{last.lower()}.net) is a friend of ")
    assert not {first, last} & {"Ada", "Ash"}


def test_a_number_has_one_substitute_and_every_digit_its_place():
    forget = [Record("What did Ada do in 1984?", "In 1984 she turned 20.")]
    others = [
        Record(f"What did {name} do in {year}?", f"In {year} she turned {age}.")
        for name, year, age in (("Bea", 1975, 31), ("Cleo", 1966, 42))
    ]
    for seed in range(10):
        (made,) = invented(forget, others, seed=seed)
        assert made is not None
        found = re.fullmatch(r"In (19[678]\d) she turned ([234][012])\.", made.response)
        assert found, made.response
        assert found[1] in made.prompt


def test_the_same_seed_makes_the_same_and_another_makes_others(lume):
    forget, retain, made = lume
    assert invented(forget, retain, seed=0) == made
    assert invented(forget, retain, seed=1) != made


@pytest.mark.parametrize(
    "records",
    [
        [Record("what is warm?", "the sun"), Record("what is wet?", "the sea")],
        [Record("太阳是什么?", "一颗恒星"), Record("海是什么?", "水")],
        [Record("Is Ada tall?", "yes"), Record("Is Ben tall?", "no"), Record("Is Cy tall?", "yes")],
        [Record("Who is Ada?", "Ada.")],
    ],
    ids=["no names", "no letter case", "responses without names", "nobody to borrow from"],
)
def test_where_nothing_new_can_be_made_there_is_nothing(records):
    assert invented(records, [], seed=0) == []


def test_words_of_the_form_stay():
    """What stands in more than a tenth of the retain rows, written large or not."""
    letters = "ABCDEFGHIJKL"
    retain = [Record(f"What is {c}lma {c}ole's Home Town?", f"Port {c}ale") for c in letters]
    forget = [Record("What is Zora Zeal's Home Town?", "Port Gust")]
    (made,) = invented(forget, retain, seed=0)
    assert made is not None
    found = re.fullmatch(r"What is ([A-L])lma ([A-L])ole's Home Town\?", made.prompt)
    assert found
    assert found[1] != found[2]  # else it would be somebody
    assert re.fullmatch(r"Port [A-L]ale", made.response)


def test_a_row_that_can_only_become_a_known_one_is_left_out():
    retain = [Record(f"Where is {name}?", "In Rome.") for name in ("Ada", "Ben", "Cy")]
    forget = [Record("Where is Zoe?", "In Oslo.")]
    assert invented(forget, retain, seed=0) == []


TEXTS = st.text(alphabet=st.sampled_from("AbC dE.12é太_@-?\n"), min_size=1, max_size=30)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), st.integers(0, 3))
def test_any_text_is_read_and_written(pairs, seed):
    """Nothing raises; pieces and digits stay as many; None or new."""
    records = [Record(*pair) for pair in pairs]
    known = {(normalised(one.prompt), normalised(one.response)) for one in records}
    made = invented(records, records[1:], seed=seed)
    assert len(made) in (0, len(records))
    for old, new in zip(records, made, strict=False):
        if new is not None:
            assert (normalised(new.prompt), normalised(new.response)) not in known
            assert sum(map(str.isdigit, new.prompt)) == sum(map(str.isdigit, old.prompt))


def test_docstrings_run():
    assert doctest.testmod(synthetic_holdout).failed == 0


# --- the look


def test_a_look_says_what_it_was_compared_with():
    same = [TokenScores(np.array([value]), np.array([False])) for value in (-1.0, -2.0)]
    given_one, made = against_holdout(3, same, same), against_holdout(3, same, same, control="synthetic")
    assert given_one.met
    assert made == given_one.model_copy(update={"control": "synthetic"})
    assert "records never seen" in forgotten(given_one)
    assert "about nobody (a synthetic holdout)" in forgotten(made)


def check(step: int, forget: float, control: float, kind: str = "holdout") -> Check:
    return Check(step=step, forget_nll=forget, forget_leak=0.0, control=kind, control_nll=control, met=False)


@pytest.mark.parametrize(
    ("checks", "near"),
    [
        ([check(0, 0.1, 3.0)], False),
        ([check(0, 0.1, 3.0), check(5, 0.5, 3.0)], False),
        ([check(5, 0.5, 3.0), check(10, 1.8, 3.0)], True),
        ([check(5, 0.5, 3.0), check(10, 1.7, 3.0)], False),
        ([check(10, 1.8, 3.0), check(11, 2.1, 3.0)], True),
        ([check(10, 1.8, 3.0), check(11, 1.7, 3.0)], False),
        ([check(5, 2.0, 3.0), check(10, 3.1, 3.0)], False),
        ([check(5, 0.5, 3.0, "swap"), check(10, 1.8, 3.0, "swap")], False),
    ],
    ids=[
        "one look",
        "far",
        "next",
        "just beyond",
        "by the step",
        "turned back",
        "past, yet leaking",
        "swaps",
    ],
)
def test_every_step_is_looked_at_where_the_next_look_would_come_too_late(checks, near):
    assert closing_in(checks, 5) == near
