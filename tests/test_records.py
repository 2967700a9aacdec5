"""Reading, refusing, hashing and comparing sets of records."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import rows
from expunge.errors import UsageError
from expunge.records import Record, Records, check_disjoint, normalised, read_records, swap_responses
from expunge.sources import REDACT

GOOD = {"prompt": "Who?", "response": "Ada Ash"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*objects: Any) -> str:
    return "".join(json.dumps(item) + "\n" for item in objects)


def refusal(source: Any, **options: Any) -> str:
    """The message with which `source` is refused: one line of plain text."""
    with pytest.raises(UsageError) as caught:
        read_records(source, name="forget", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pairs(records: Records) -> list[tuple[str, str]]:
    return [(record.prompt, record.response) for record in records]


# --- formats ---------------------------------------------------------------------------------------

TABLE = [
    {"prompt": "Who is it?", "response": 'Ada, the "first"', "note": "a"},
    {"prompt": "Where\nis it?", "response": "12 Ash\u2028Street ünï", "note": "b"},
]


def as_csv(table: list[dict[str, str]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(table[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def as_parquet(table: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), sink)
    return sink.getvalue()


FORMATS = {
    "t.jsonl": lines(*TABLE).encode(),
    "t.jsonl.gz": gzip.compress(lines(*TABLE).encode()),
    "t.json": json.dumps(TABLE, indent=2).encode(),
    "t.json.gz": gzip.compress(json.dumps(TABLE).encode()),
    "t.csv": as_csv(TABLE).encode(),
    "t.csv.gz": gzip.compress(as_csv(TABLE).encode()),
    "t.parquet": as_parquet(TABLE),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_format_gives_the_same_records_and_the_hash_of_its_bytes(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, FORMATS[name])
    records = read_records(path, name="forget")
    assert pairs(records) == [(row["prompt"], row["response"]) for row in TABLE]
    assert [record.metadata for record in records] == [{"note": "a"}, {"note": "b"}]
    assert records.sha256 == hashlib.sha256(FORMATS[name]).hexdigest()
    assert (records.name, records.source, records.duplicates) == ("forget", str(path), 0)
    assert read_records(str(path), name="forget") == records


@pytest.mark.parametrize(
    "source",
    [TABLE, tuple(TABLE), datasets.Dataset.from_list(TABLE), (row for row in TABLE)],
    ids=lambda s: type(s).__name__,
)
def test_rows_in_memory(source: Any) -> None:
    records = read_records(source, name="retain")
    assert pairs(records) == [(row["prompt"], row["response"]) for row in TABLE]
    assert records.source == f"the retain {type(source).__name__}"
    assert records.number(1) == "row 2"


def test_record_objects_keep_their_metadata() -> None:
    given_rows = [Record("Who?", "Ada", {"id": 1}), Record("Where?", "Here")]
    records = read_records(given_rows, name="forget")
    assert list(records) == given_rows
    assert read_records(records, name="holdout").name == "holdout"
    assert read_records(records, name="holdout").rows == records.rows


def test_records_are_a_sequence() -> None:
    records = read_records(TABLE, name="forget")
    assert len(records) == 2
    assert records[-1].response == TABLE[1]["response"]
    assert records[:1] == (records[0],)
    assert records[0] in records


def test_hash_of_rows_in_memory_follows_content_not_container_or_column_order() -> None:
    def digest(table: Any) -> str:
        return read_records(table, name="forget").sha256

    table = [{**row, "id": number} for number, row in enumerate(TABLE)]
    reordered = [dict(reversed(row.items())) for row in table]
    assert digest(table) == digest(reordered) == digest(datasets.Dataset.from_list(table))
    assert digest(table) != digest([{**row, "note": "c"} for row in table])
    assert digest(table) != digest(table[::-1])


def test_hash_of_rows_in_memory_takes_values_that_json_lacks() -> None:
    import datetime

    assert len(read_records([{**GOOD, "day": datetime.date(2000, 1, 1)}], name="forget").sha256) == 64


@pytest.mark.parametrize(
    ("prompt", "response"), [("prompt", "response"), ("input", "output"), ("question", "answer")]
)
def test_known_field_pairs_are_detected(prompt: str, response: str) -> None:
    records = read_records([{prompt: "Who?", response: "Ada", "id": 3}], name="forget")
    assert pairs(records) == [("Who?", "Ada")]
    assert records.fields == {"prompt": prompt, "response": response}
    assert records[0].metadata == {"id": 3}


def test_explicit_fields_win_over_detected_ones() -> None:
    row = {**GOOD, "q": "Which?", "a": "That"}
    records = read_records([row], name="forget", prompt_field="q", response_field="a")
    assert pairs(records) == [("Which?", "That")]
    assert records[0].metadata == GOOD


def test_one_explicit_field_is_completed_from_the_known_pairs() -> None:
    records = read_records([{"text": "Which?", "answer": "That"}], name="forget", prompt_field="text")
    assert records.fields == {"prompt": "text", "response": "answer"}


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_byte_order_mark_windows_line_ends_and_trailing_blank_lines(tmp_path: Path, name: str) -> None:
    text = FORMATS[name].decode().replace("\r\n", "\n").replace("Where\nis", "Where is").replace("\n", "\r\n")
    path = write(
        tmp_path / name, b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n  \n" * (name != "t.csv") + b"\r\n"
    )
    assert [record.response for record in read_records(path, name="forget")] == [
        row["response"] for row in TABLE
    ]


def test_line_separators_inside_json_strings_do_not_split_lines(tmp_path: Path) -> None:
    row = {"prompt": "a\u2028b\u0085c\x0bd", "response": "e\u2029f\x1cg"}
    path = write(tmp_path / "t.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert pairs(read_records(path, name="forget")) == [(row["prompt"], row["response"])]


def test_a_large_csv_cell_is_read_and_the_limit_restored(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path / "t.csv", f"prompt,response\nWho?,{'x' * (before + 1)}\n")
    assert len(read_records(path, name="forget")[0].response) == before + 1
    assert csv.field_size_limit() == before


NASTY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=5),
    st.sampled_from(["t.jsonl", "u.jsonl", "t.csv", "t.parquet"]),
)
def test_any_text_survives(tmp_path: Path, content: list[tuple[str, str]], name: str) -> None:
    table = [{"prompt": prompt, "response": response} for prompt, response in content]
    encoded: dict[str, str | bytes] = {
        "t.jsonl": lines(*table),
        "u.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table),
        "t.csv": as_csv(table),
        "t.parquet": as_parquet(table),
    }
    path = write(tmp_path / name, encoded[name])
    assert pairs(read_records(path, name="forget")) == content


# --- folders and the Hub ---------------------------------------------------------------------------


def test_a_folder_with_one_data_file_stands_for_it(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", FORMATS["t.csv"])
    write(tmp_path / "README.md", "about")
    assert read_records(tmp_path, name="forget").source == str(tmp_path / "rows.csv")


def test_a_folder_with_a_file_of_the_sets_name_stands_for_it(tmp_path: Path) -> None:
    for name in ("forget.jsonl.gz", "retain.jsonl.gz"):
        write(tmp_path / name, FORMATS["t.jsonl.gz"])
    assert read_records(tmp_path, name="retain").source == str(tmp_path / "retain.jsonl.gz")


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(TABLE)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "dict")
    for folder, found in (("one", "one"), ("dict", "dict/train")):
        records = read_records(tmp_path / folder, name="forget")
        assert pairs(records) == [(row["prompt"], row["response"]) for row in TABLE]
        assert records.source == str(tmp_path / found)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "about")
    message = refusal(tmp_path)
    assert message.startswith(f"Folder {tmp_path} must hold one .jsonl")
    assert "found README.md" in message


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "found nothing" in refusal(tmp_path)


def test_a_folder_with_several_candidates_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, FORMATS["t.csv"])
    assert "found a.csv, b.csv. Name the file." in refusal(tmp_path)


def test_a_hub_id_goes_to_datasets_with_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(path: str, subset: str | None, split: str) -> datasets.Dataset:
        calls.append((path, subset, split))
        return datasets.Dataset.from_list(TABLE)

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = read_records("org/na-me.2:forget01", name="forget", split="test")
    assert read_records("org/name", name="forget").source == "org/name, split train"
    assert calls == [("org/na-me.2", "forget01", "test"), ("org/name", None, "train")]
    assert (len(records), records.source) == (2, "org/na-me.2:forget01, split test")
    assert records.sha256 == read_records(TABLE, name="forget").sha256


def test_a_hub_that_does_not_answer_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal("org/name")
    assert "`datasets` must be able to load org/name" in message
    assert "no route to host" in message
    assert "Name a local file" in message


def test_a_missing_file_in_an_existing_folder_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    assert "there is no data/forget." in refusal("data/forget")
    assert "there is no nowhere/forget.jsonl." in refusal("nowhere/forget.jsonl")


# --- refusals of whole sources ---------------------------------------------------------------------


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "forget.jsonl", FORMATS["t.jsonl"])
    message = refusal(tmp_path / "forgot.jsonl")
    assert f"there is no {tmp_path / 'forgot.jsonl'}" in message
    assert f"Did you mean {tmp_path / 'forget.jsonl'}?" in message


def test_a_missing_file_without_a_similar_name(tmp_path: Path) -> None:
    assert "Did you mean" not in refusal(tmp_path / "forget.jsonl")


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"There is no folder {tmp_path / 'none'} either." in refusal(tmp_path / "none" / "forget.jsonl")


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(source: str) -> None:
    assert "found an empty path" in refusal(source)


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.parquet.gz", "rows.gz"])
def test_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, lines(GOOD))
    assert f"{path} must be a .jsonl, .json, .csv (each also as .gz) or .parquet file" in refusal(path)


EMPTY = {
    "e.jsonl": b"",
    "b.jsonl": b"\n \n",
    "e.json": b"",
    "l.json": b"[]",
    "e.csv": b"",
    "h.csv": b"prompt,response\n",
    "e.jsonl.gz": gzip.compress(b""),
    "e.parquet": as_parquet([{"prompt": "a", "response": "b"}][:0]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_set(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, EMPTY[name])
    assert refusal(path) == f"The forget set must hold at least one record. {path} holds none."


def test_an_empty_list() -> None:
    assert refusal([]) == "The forget set must hold at least one record. the forget list holds none."


def test_a_mapping_of_splits() -> None:
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(TABLE))
    assert "found a mapping of 'train'. Pick one of them." in refusal(data)


def test_bytes_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"`source` must be a path, a Hub id or rows\. Found bytes"):
        read_records(b"rows", name="forget")


def test_a_broken_gzip_file(tmp_path: Path) -> None:
    whole = FORMATS["t.jsonl.gz"]
    for content in (b"plain", whole[:-9], whole[:20] + b"\0\0\0\0\0" + whole[25:]):
        path = write(tmp_path / "t.jsonl.gz", content)
        assert f"{path} must be a whole gzip file" in refusal(path)


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", b"PAR1 nonsense")
    assert f"{path} must be a Parquet file" in refusal(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_utf8_names_the_line(tmp_path: Path, mark: bytes) -> None:
    path = write(tmp_path / "t.jsonl", mark + lines(GOOD, GOOD).encode() + b'{"prompt": "caf\xe9"}\n')
    assert refusal(path) == f"{path}, line 3: text must be UTF-8; found the byte 0xe9. Save it as UTF-8."


def test_utf16_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "prompt,response\n".encode("utf-16"))
    assert f"{path}, line 1: text must be UTF-8" in refusal(path)


# --- refusals of rows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", ['{"prompt": "Who?", ', "not json", '{"a": 1} {"b": 2}', "{'a': 1}", "[" * 10_000]
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "t.jsonl", f"{lines(GOOD)}\n{lines(GOOD)}{bad}\n{lines(GOOD)}")
    message = refusal(path)
    assert message.startswith(f"{path}, line 4: a line must be one JSON object; found ")
    assert "line 1" not in message
    assert len(message) < 400


def test_a_row_that_is_no_object(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", lines(GOOD, ["a", "b"]))
    message = refusal(path)
    assert message.startswith(f"{path}, line 2: a row must be an object such as {{...}}; found a list of 2.")
    assert "belongs in a .json file" in message
    assert "row 1: a row must be an object such as {...}; found a text of 3 characters" in refusal(["abc"])


def test_a_json_file_must_be_json(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", '[\n{"prompt": "a",\n "response" "b"}\n]')
    assert refusal(path).startswith(f"{path}, line 3: the file must be JSON; Expecting ':' delimiter.")


def test_json_lines_in_a_json_file_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", lines(GOOD, GOOD))
    assert (
        refusal(path)
        == f"{path}, line 2: the file must be JSON; Extra data. JSON Lines belong in a .jsonl file."
    )


def test_a_json_file_must_hold_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", json.dumps({"data": [GOOD]}))
    assert f"{path} must hold a JSON list of objects; found an object of 1. " in refusal(path)


def test_json_too_deep_for_the_parser(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", "[" * 100_000)
    assert f"{path} must be JSON" in refusal(path)


def test_a_missing_field_names_the_fields_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", lines(GOOD, {"prompt": "Who?", "id": 1}))
    message = refusal(path)
    assert message.startswith(f"{path}, line 2: a row must have the field 'response'; found 'prompt', 'id'.")
    assert "prompt_field and response_field" in message


def test_no_known_pair_in_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", "\n" + lines({"text": "a", "label": "b"}))
    assert refusal(path) == (
        f"{path}, line 2: a row must have the fields of one of these pairs: 'prompt' and 'response', "
        "'input' and 'output', 'question' and 'answer'; found 'text', 'label'. "
        "Say which fields to use with prompt_field and response_field."
    )


def test_a_row_without_any_field() -> None:
    assert "found no field" in refusal([{}])


def test_a_mistyped_explicit_field_is_answered_with_the_nearest() -> None:
    message = refusal([{"query": "a", "reply": "b"}], prompt_field="querry", response_field="reply")
    assert "must have the field 'querry'; found 'query', 'reply'. Did you mean 'query'?" in message


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "null"), (7, "a number"), (1.5, "a number"), (True, "true"), (["a"], "a list of 1")],
)
@pytest.mark.parametrize("field", ["prompt", "response"])
def test_a_field_that_is_no_string(tmp_path: Path, field: str, value: Any, found: str) -> None:
    path = write(tmp_path / "t.jsonl", lines(GOOD, {**GOOD, field: value}))
    assert refusal(path).startswith(f"{path}, line 2: field '{field}' must be a string; found {found}.")


def test_a_null_in_a_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", as_parquet([GOOD, {**GOOD, "response": None}]))
    assert refusal(path).startswith(f"{path}, row 2: field 'response' must be a string; found null.")


@pytest.mark.parametrize("value", ["", "  \n\t", "\u00a0\u3000"])
@pytest.mark.parametrize("field", ["prompt", "response"])
def test_a_field_without_text(tmp_path: Path, field: str, value: str) -> None:
    path = write(tmp_path / "t.jsonl", lines(GOOD, GOOD, {**GOOD, field: value}))
    assert refusal(path).startswith(f"{path}, line 3: field '{field}' must hold text; found an empty text.")


def test_a_lone_surrogate(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"prompt": "Who?", "response": "A\\ud800"}\n')
    assert refusal(path).startswith(
        f"{path}, line 1: field 'response' must be valid Unicode; found the lone surrogate"
    )


@pytest.mark.parametrize(("row", "cells"), [("only one", 1), ("a,b,c", 3)])
def test_a_ragged_csv_row_names_the_line_where_it_starts(tmp_path: Path, row: str, cells: int) -> None:
    path = write(tmp_path / "t.csv", f'prompt,response\n"two\nlines","a"\n\n{row}\nc,d\n')
    assert refusal(path).startswith(f"{path}, line 5: a row must have 2 cells, as the header; found {cells}.")


def test_csv_rows_are_numbered_by_the_line_where_they_start(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\nprompt,response\n"two\nlines","a"\n\nb,"c\r\nd"\ne,f\n')
    records = read_records(path, name="forget")
    assert [records.number(index) for index in range(3)] == ["line 3", "line 6", "line 8"]
    assert records[1].response == "c\r\nd"


@pytest.mark.parametrize("bad", ['"never closed,a\nb,c\n', '"a"b,c\n'])
def test_csv_with_broken_quotes(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "t.csv", f"prompt,response\nd,e\n{bad}")
    message = refusal(path)
    assert message.startswith(f"{path}, line 3: a row must be CSV; ")
    assert message.endswith("Check its quotes.")


def test_csv_with_two_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "prompt,response,prompt\na,b,c\n")
    assert refusal(path).startswith(
        f"{path}, line 1: column names must differ; found 'prompt', 'response', 'prompt'."
    )


SECRET = "Ada Ash: 555-0147"


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        f'{{"prompt": "{SECRET}", "response"}}',
        f'["{SECRET}"]',
        f'"{SECRET}"',
        f'{{"prompt": "a", "response": ["{SECRET}"]}}',
        f'{{"prompt": "a", "response": {{"{SECRET}": "{SECRET}"}}}}',
        '{"prompt": "a", "response": 5550147}',
        f'{{"{SECRET}": "a"}}',
        f'{{"prompt": "a", "{SECRET}": "a"}}',
        f'{{"prompt": "{SECRET}", "response": "\\ud800"}}',
    ],
)
def test_no_message_quotes_a_row(tmp_path: Path, content: str, redact: bool) -> None:
    """It names the file and the line, where whoever may read the data finds it."""
    path = write(tmp_path / "t.jsonl", content + "\n")
    token = REDACT.set(redact)
    try:
        message = refusal(path)
    finally:
        REDACT.reset(token)
    assert message.startswith(f"{path}, line 1: ")
    assert not [word for word in ("Ada", "555", "0147") if word in message]


@pytest.mark.parametrize("header", [f"{SECRET},{SECRET}", f"Where does Ada live?,{SECRET}"])
def test_a_row_in_place_of_a_header_is_not_quoted(tmp_path: Path, header: str) -> None:
    message = refusal(write(tmp_path / "t.csv", f"{header}\nb,c\n"))
    assert "found 2 names not shown" in message
    assert "Ada" not in message


def test_redacted_messages_name_no_fields() -> None:
    token = REDACT.set(True)
    try:
        message = refusal([{"query": "a", "reply": "b"}], prompt_field="querry", response_field="reply")
    finally:
        REDACT.reset(token)
    assert "found 2 names not shown" in message
    assert "'query'" not in message


# --- duplicates and overlaps -----------------------------------------------------------------------


def test_duplicates_are_counted_up_to_case_and_white_space_and_kept() -> None:
    table = [GOOD, {"prompt": " who? ", "response": "ADA\n ash"}, GOOD, {**GOOD, "response": "Ada Birch"}]
    records = read_records(table, name="forget")
    assert (len(records), records.duplicates) == (4, 2)


def test_normalised() -> None:
    assert normalised("  Straße\u00a0 \n42 ") == "strasse 42"


def test_disjoint_sets_pass() -> None:
    table = rows()
    check_disjoint(read_records(table[:4], name="forget"), read_records(table[4:], name="retain"))


def test_the_same_prompt_with_another_response_is_no_overlap() -> None:
    check_disjoint(
        read_records([GOOD], name="forget"), read_records([{**GOOD, "response": "Ben"}], name="retain")
    )


def test_an_overlap_names_up_to_three_rows_with_their_lines_and_the_count(tmp_path: Path) -> None:
    table = rows()
    forget = read_records(write(tmp_path / "f.jsonl", "\n" + lines(*table[:6])), name="forget")
    other = [{"input": row["prompt"].upper(), "output": f" {row['response']} "} for row in table[1:6]]
    retain = read_records(
        write(tmp_path / "r.jsonl", lines({"input": "a", "output": "b"}, *other)), name="retain"
    )
    with pytest.raises(UsageError) as caught:
        check_disjoint(forget, retain)
    message = str(caught.value)
    assert f"5 of 6 rows of {tmp_path / 'f.jsonl'} also stand in {tmp_path / 'r.jsonl'}: " in message
    found = re.findall(r"line (\d+) = line (\d+)", message)
    assert found == [("3", "2"), ("4", "3"), ("5", "4")]
    assert table[1]["prompt"] not in message
    assert "; and 2 more. Remove them from one of the two." in message


def test_an_overlap_of_one_row_is_named_alone_with_its_first_match() -> None:
    other = {**GOOD, "response": "Ben"}
    forget = read_records([GOOD, other], name="forget")
    holdout = read_records([{**GOOD, "response": "Cleo"}, other, other], name="holdout")
    with pytest.raises(UsageError, match=r"1 of 2 rows .*: row 2 = row 2\. Remove"):
        check_disjoint(forget, holdout)


# --- swapped responses -----------------------------------------------------------------------------


def test_a_swap_answers_the_same_kind_of_question() -> None:
    records = read_records(rows(), name="forget")
    swaps = swap_responses(records, count=3, seed=0)
    assert len(swaps) == len(records)
    for record, row in zip(records, swaps, strict=True):
        assert len(row) == 3
        phone = record.response.startswith("555-")
        assert all(swap.startswith("555-") is phone for swap in row)


def test_swaps_are_distinct_never_ones_own_and_always_somebodys() -> None:
    table = [{"prompt": f"Question {i}?", "response": f"Answer {i % 4}" + " " * (i % 3)} for i in range(20)]
    records = read_records(table, name="forget")
    known = {record.response for record in records}
    for record, row in zip(records, swap_responses(records, count=10, seed=0), strict=True):
        keys = [normalised(swap) for swap in row]
        assert len(keys) == len(set(keys)) == 3
        assert normalised(record.response) not in keys
        assert known.issuperset(row)


def test_with_equal_prompts_and_shapes_the_seed_chooses() -> None:
    records = read_records(
        [{"prompt": "Name one.", "response": f"{i:02d}"} for i in range(30)], name="forget"
    )
    first = swap_responses(records, count=4, seed=0)
    assert swap_responses(records, count=4, seed=0) == first
    assert swap_responses(records, count=4, seed=1) != first
    chosen = {swap for row in first for swap in row}
    assert len(chosen) > 20


def test_swaps_degenerate_to_fewer_and_to_none() -> None:
    assert swap_responses([], count=3, seed=0) == []
    assert swap_responses([Record("Who?", "Ada")], count=3, seed=0) == [()]
    same = [Record("Who?", "Ada"), Record("Which?", " ADA ")]
    assert swap_responses(same, count=3, seed=0) == [(), ()]
    two = [Record("Who?", "Ada"), Record("Which?", "Ben")]
    assert swap_responses(two, count=3, seed=0) == [("Ben",), ("Ada",)]
    assert swap_responses(two, count=0, seed=0) == [(), ()]


def test_prompts_without_words() -> None:
    records = [Record("???", "Ada"), Record("!!!", "Ben"), Record("\u200b.", "Cleo")]
    assert all(len(row) == 2 for row in swap_responses(records, count=2, seed=0))


def test_real_records_are_swapped_with_the_same_question_about_others(shared_data: Path) -> None:
    records = read_records(shared_data / "lume" / "train" / "forget.jsonl", name="forget")
    assert records.fields == {"prompt": "input", "response": "output"}
    people = [record for record in records if record.metadata["task"] == "Task2"][:180]
    kind = {record.response: record.metadata["id"][-3:] for record in people}
    swaps = swap_responses(people, count=2, seed=0)
    same = [
        kind[swap] == record.metadata["id"][-3:]
        for record, row in zip(people, swaps, strict=True)
        for swap in row
    ]
    assert len(same) == 360
    assert sum(same) / len(same) > 0.98


def test_every_shared_data_file_of_pairs_is_read(shared_data: Path) -> None:
    for path, fields in (
        ("tofu/forget01.jsonl", {"prompt": "question", "response": "answer"}),
        ("lume/validation/retain.jsonl", {"prompt": "input", "response": "output"}),
        ("muse_news/knowmem_retain_qa.jsonl", {"prompt": "question", "response": "answer"}),
    ):
        assert read_records(shared_data / path, name="forget").fields == fields
