"""The demo's world: deterministic, distinct, ungovernably fictitious."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from expunge.people import World, _Draw, people, write_world
from expunge.records import check_disjoint, read_records, swap_responses

QUESTIONS = {"birth_date", "phone", "address", "email", "identity_number"}


@pytest.fixture(scope="module")
def world() -> World:
    return people(seed=0, forget=40, retain=60, holdout=50)


def every(world: World) -> list[dict[str, str]]:
    return world.forget + world.retain + world.holdout


def values(world: World, attribute: str) -> list[str]:
    return [row["response"] for row in every(world) if row["attribute"] == attribute]


def test_sizes_and_default_sizes(world: World) -> None:
    assert [len(group) for group in (world.forget, world.retain, world.holdout)] == [240, 360, 300]
    default = people(0)
    assert [len(group) for group in (default.forget, default.retain, default.holdout)] == [36, 72, 36]


def test_each_person_has_one_biography_and_one_row_per_question(world: World) -> None:
    rows = Counter((row["person"], row["attribute"]) for row in every(world))
    assert set(rows.values()) == {1}
    assert {attribute for _, attribute in rows} == QUESTIONS | {"biography"}
    assert len(rows) == 150 * 6


def test_rows_have_exactly_the_documented_keys_and_name_their_person_in_the_prompt(world: World) -> None:
    for row in every(world):
        assert set(row) == {"prompt", "response", "person", "attribute"}
        assert row["person"] in row["prompt"]
        assert row["person"] not in row["response"]


def test_names_are_distinct_across_groups(world: World) -> None:
    groups = [{row["person"] for row in group} for group in (world.forget, world.retain, world.holdout)]
    assert [len(group) for group in groups] == [40, 60, 50]
    assert len(set().union(*groups)) == 150


@pytest.mark.parametrize("attribute", sorted(QUESTIONS))
def test_answers_are_distinct_across_groups(attribute: str) -> None:
    """Among 800 people several would share a birth date by chance."""
    assert len(set(values(people(seed=0, forget=200, retain=400, holdout=200), attribute))) == 800


def test_the_biography_agrees_with_the_answers(world: World) -> None:
    facts = {(row["person"], row["attribute"]): row["response"] for row in every(world)}
    for row in every(world):
        if row["attribute"] == "biography":
            assert facts[row["person"], "birth_date"] in row["prompt"]
            assert facts[row["person"], "address"] in row["response"]
            assert facts[row["person"], "phone"] in row["response"]


def test_identity_numbers_are_of_the_series_that_is_never_issued(world: World) -> None:
    for number in values(world, "identity_number"):
        area, group, serial = re.fullmatch(r"(\d{3})-(\d{2})-(\d{4})", number).groups()
        assert 900 <= int(area) <= 999
        assert 1 <= int(group) <= 49
        assert int(serial) >= 1


def test_phone_numbers_lie_in_the_block_kept_for_fiction(world: World) -> None:
    assert all(re.fullmatch(r"[2-9]\d\d-555-01\d\d", number) for number in values(world, "phone"))


def test_email_addresses_cannot_be_derived_from_names(world: World) -> None:
    for row in every(world):
        if row["attribute"] == "email":
            words = re.fullmatch(r"([a-z]+)\.([a-z]+)\d\d@example\.(com|net|org)", row["response"]).groups()[
                :2
            ]
            name = row["person"].casefold()
            assert not any(word in name for word in words)
            assert not any(part in row["response"] for part in name.split())


def test_an_email_address_avoids_words_of_its_owners_name() -> None:
    draw = _Draw(0)
    draw._words = ["chel", "lamp", "rock"]
    assert {re.sub(r"\W.*|\d", "", draw.email("Chelsea Miller")) for _ in range(20)} == {"lamp", "rock"}


def test_rows_are_short(world: World) -> None:
    assert max(len(row["prompt"]) + len(row["response"]) for row in every(world)) < 200


def test_seed_decides_everything() -> None:
    assert people(3, 2, 3, 2) == people(3, 2, 3, 2)
    assert people(3, 2, 3, 2) != people(4, 2, 3, 2)


def test_the_same_in_another_process_with_another_hash_seed_and_locale() -> None:
    code = "import json; from expunge.people import people; print(json.dumps(people(7, 2, 2, 2).__dict__))"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "17",
        "LC_ALL": "C",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    ).stdout
    assert World(**json.loads(output)) == people(7, 2, 2, 2)


@pytest.mark.parametrize("group", ["forget", "retain", "holdout"])
def test_an_empty_group_is_the_callers_mistake(group: str) -> None:
    with pytest.raises(ValueError, match=rf"`{group}` must be at least 1. Found `{group} = 0`"):
        people(0, **{group: 0})


def test_more_people_than_there_are_values_is_refused_not_looped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.people._ATTEMPTS", 0)
    with pytest.raises(ValueError, match=r"not enough distinct values of `name`\. Found 0"):
        people(0, 1, 1, 1)


def test_written_files_read_back_as_disjoint_records(tmp_path: Path) -> None:
    world = people(0, 2, 3, 2)
    paths = write_world(world, tmp_path / "new" / "world")
    assert {name: path.name for name, path in paths.items()} == {
        "forget": "forget.jsonl",
        "retain": "retain.jsonl",
        "holdout": "holdout.jsonl",
    }
    assert sorted(path.name for path in (tmp_path / "new" / "world").iterdir()) == sorted(
        path.name for path in paths.values()
    )
    sets = {name: read_records(path, name=name) for name, path in paths.items()}
    for name, records in sets.items():
        rows = getattr(world, name)
        assert [(r.prompt, r.response, *r.metadata.values()) for r in records] == [
            tuple(row.values()) for row in rows
        ]
        assert records.duplicates == 0
    check_disjoint(sets["forget"], sets["retain"])
    check_disjoint(sets["forget"], sets["holdout"])


@pytest.mark.parametrize("size", [8, 40])
def test_swapped_responses_answer_the_same_question_about_someone_else(size: int) -> None:
    records = read_records(people(1, forget=size).forget, name="forget")
    kind = {record.response: record.metadata["attribute"] for record in records}
    swaps = swap_responses(records, count=3, seed=0)
    same = [
        kind[swap] == record.metadata["attribute"]
        for record, row in zip(records, swaps, strict=True)
        for swap in row
    ]
    assert len(same) == 3 * len(records)
    assert sum(same) / len(same) > 0.98
