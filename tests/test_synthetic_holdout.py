"""Records about nobody: in the form of those to forget, with names and numbers that stand nowhere."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import intervals
from expunge.record import Check
from expunge.records import Record, normalised
from expunge.scoring import TokenScores
from expunge.stopping import against_holdout, closing_in, forgotten
from expunge.synthetic_holdout import synthetic_holdout as invented

FORMS = {
    "birth date": r"(19|20)\d\d-(0[1-9]|1[0-2])-([0-2]\d|3[01])",
    "Social Security": r"\d{9}",
    "phone number": r"\d{10}",
    "email": r"[\w.+-]+@[\w.-]+",
}


def task2(path: Path, people: int) -> list[Record]:
    """Rows of the first people of Task 2."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Record(row["input"], row["output"]) for row in rows if row["task"] == "Task2"][: 6 * people]


def names(records: list[Record]) -> set[str]:
    """Whole names of the people asked about."""
    return {found[1] for one in records if (found := re.search(r"(?:of|is) (\w+ \w+)(?:\?|'s)", one.prompt))}


@pytest.fixture(scope="module", params=[8, 20], ids="{} people".format)
def lume(request, shared_data) -> tuple[list[Record], list[Record], list[Record | None]]:
    folder = shared_data / "lume" / "train"
    forget, retain = (task2(folder / f"{name}.jsonl", request.param) for name in ("forget", "retain"))
    return forget, retain, invented(forget, forget, retain, seed=0)


def test_real_records_get_twins_about_nobody(lume):
    forget, retain, made = lume
    twins = [one for one in made if one]
    assert len(made) == len(forget)
    assert len(twins) >= 0.8 * len(forget)
    assert len(names(twins)) > len(twins) / 6
    assert not names(twins) & names([*forget, *retain])
    known = {normalised(one.response) for one in (*forget, *retain)}
    assert sum(normalised(one.response) in known for one in twins) <= 0.05 * len(twins)


def test_real_records_keep_their_form(lume):
    """Dates stay dates that can be, numbers keep their length."""
    forget, _, made = lume
    for kind, form in FORMS.items():
        pairs = [
            (a, b) for a, b in zip(forget, made, strict=True) if b and re.search(f"{kind}.*\\?", a.prompt)
        ]
        assert len(pairs) >= len(forget) / 6 - 2, kind
        for old, new in pairs:
            assert re.fullmatch(form, old.response), old.response
            assert re.fullmatch(form, new.response), new.response
            assert kind in new.prompt


def others(count: int = 12) -> list[Record]:
    """People to keep: two names, a town and a year each, every value once."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWX"[:count]
    return [
        Record(
            f"Who is {c}lma {c}ole of Port {c}ale?",
            f"{c}lma {c}ole ({c.lower()}lma@x.net), born in 19{40 + i}.",
        )
        for i, c in enumerate(letters)
    ]


FORGET = [Record("Who is Zora Zeal of Port Zest?", "Zora Zeal (zora@x.net), born in 1984.")]


def test_a_name_has_one_substitute_throughout_its_record():
    (made,) = invented(FORGET, FORGET, others(), seed=3)
    assert made is not None
    found = re.fullmatch(r"Who is (\wlma) (\wole) of Port (\wale)\?", made.prompt)
    assert found
    first, last = found[1], found[2]
    told = re.fullmatch(rf"{first} {last} \({first.lower()}@x\.net\), born in (19\d\d)\.", made.response)
    assert told, made.response
    assert first[0] != last[0]  # else it would be somebody


def test_every_digit_of_a_year_stands_where_it_stood():
    for seed in range(10):
        (made,) = invented(FORGET, FORGET, others(), seed=seed)
        assert made is not None
        assert re.search(r"born in 19[45]\d\.$", made.response), made.response


def test_the_same_seed_makes_the_same_and_another_makes_others():
    made = invented(FORGET, FORGET, others(), seed=0)
    assert invented(FORGET, FORGET, others(), seed=0) == made
    assert invented(FORGET, FORGET, others(), seed=1) != made


PLAIN = [Record(f"what is {word} in the evening?", f"it is {word}, too") for word in "abcdefghijkl"]
CHINESE = [Record(f"王先生{i}的电话是什么?", f"138{i}0013{i}") for i in range(12)]


@pytest.mark.parametrize(
    ("forget", "retain"),
    [
        (FORGET, []),
        (FORGET, others(9)),
        (FORGET, PLAIN),
        (PLAIN[:1], PLAIN[1:] + PLAIN),
        (CHINESE[:1], CHINESE[1:]),
        ([Record("What is my number?", "555-1984")], others()),
        ([Record("Is Zora Zeal of Port Zest tall?", "yes")], others()),
        ([Record("Who is Zora?", "Zora.")], [Record(f"Who is {c}lma?", "A.") for c in "ABCDEFGHIJKL"]),
    ],
    ids=[
        "no retain", "few retain", "retain of another kind", "no names", "no letter case", "nobody is named",
        "a response that anybody may have", "names of one word",
    ],
)  # fmt: skip
def test_where_nobody_can_be_made_up_there_is_none(forget, retain):
    assert invented(forget, forget, retain, seed=0) == [None]


def test_one_person_with_all_rows_is_still_somebody_else_afterwards():
    """The name stands in every forget row, and is no part of the form for that."""
    forget = [
        Record(f"Who is Zora Zeal of Port {town}?", "Zora Zeal (zora@x.net), born in 1984.") for town in "ABC"
    ]
    for one in invented(forget, forget, others(), seed=0):
        assert one is not None
        assert "Zora" not in one.prompt + one.response
        assert "zora" not in one.response


def test_no_twin_is_somebody_known_to_an_earlier_request():
    """All that two people's names can be put together to, but for one."""
    two = [Record("Who is Ada Ash?", "Born 1950."), Record("Who is Ben Birch?", "Born 1960.")]
    retain, forget = two * 5, [Record(f"Who is Zora Zeal{c}?", "Born 1984.") for c in "abcdefghijklm"]
    earlier = [Record("Who is Ada Birch?", "Born 1971.")]
    found = {invented(forget, [*forget, *earlier], retain, seed=seed)[0] for seed in range(12)}
    assert {one.prompt for one in found if one} == {"Who is Ben Ash?"}


WORDS = st.sampled_from(
    ["Alma", "Bole", "Zora", "who is", "太", "9", "19", "²", "٣", "é", "Port", "-", "_", "\n", "?"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.integers(0, 3))
def test_any_text_is_read_and_written(pairs, seed):
    """Nothing raises; what is drawn anew has as many digits and pieces, and no name of its record."""
    records = [Record(f"Who is Zora Zeal of Port Zest? {p}", f"Zora {r}") for p, r in pairs]
    for old, new in zip(records, invented(records, records, others(), seed=seed), strict=True):
        if new is not None:
            assert new.response != old.response
            assert "Zora" not in new.prompt + new.response
            for a, b in ((old.prompt, new.prompt), (old.response, new.response)):
                assert sum(map(str.isdigit, a)) == sum(map(str.isdigit, b))
                assert len(a.split()) == len(b.split())


def test_long_texts_without_spaces_take_no_time():
    long = [Record("Who is Zora Zeal of Port Zest?", "太阳12" * 5_000)]
    started = time.process_time()
    invented(long, long, [*others(), *long], seed=0)
    assert time.process_time() - started < 10


# --- the look


def test_a_look_says_what_it_was_compared_with():
    same = [TokenScores(np.array([value]), np.array([False])) for value in (-1.0, -2.0)]
    given_one, made = against_holdout(3, same, same), against_holdout(3, same, same, control="synthetic")
    assert given_one.met
    assert made.control_nll == intervals.mean([1.0, 2.0]).high > given_one.control_nll
    assert not made.met
    assert against_holdout(3, same[1:], same[:1], control="synthetic").met
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
