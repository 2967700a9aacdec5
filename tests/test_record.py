"""The run record on disk: it survives the round trip, and refuses what it cannot be."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from pydantic import VERSION, ValidationError

from expunge.errors import UsageError
from expunge.record import SCHEMA_VERSION, Metric, RunRecord, read_record, write_atomically, write_record
from record_factory import run_record, sparse_record

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "record.schema.json"
REGENERATE = (
    'python -c "import json; from expunge.record import RunRecord; '
    'print(json.dumps(RunRecord.model_json_schema(), indent=1))" > docs/record.schema.json'
)


@pytest.mark.parametrize("record", [run_record(control=True), sparse_record()], ids=["full", "sparse"])
def test_round_trip(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path / "new" / "folder")
    assert path.name == "record.json"
    assert read_record(path) == record
    assert read_record(path.parent) == record


def test_infinities_and_nan_survive_as_valid_json(tmp_path: Path) -> None:
    step = (
        run_record(history=1)
        .history[0]
        .model_copy(
            update={"losses": {"forget": math.nan, "retain": math.inf}, "weights": {"forget": -math.inf}}
        )
    )
    record = run_record().model_copy(update={"history": [step]})
    path = write_record(record, tmp_path)
    text = path.read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON; strings are
    found = read_record(path).history[0]
    assert math.isnan(found.losses["forget"])
    assert found.losses["retain"] == math.inf
    assert found.weights["forget"] == -math.inf


def test_text_of_any_script_survives(tmp_path: Path) -> None:
    notes = ["Zoë 漢字 עברית 😀", "line\nbreak\ttab \u202e bidi \x00 null", "</script>"]
    write_record(sparse_record(notes=notes), tmp_path)
    assert read_record(tmp_path).notes == notes


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, None, "1"])
def test_another_schema_is_refused(version: object, tmp_path: Path) -> None:
    path = write_record(sparse_record(), tmp_path)
    changed = json.loads(path.read_text(encoding="utf-8")) | {"schema_version": version, "from_the_future": 1}
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"schema version {SCHEMA_VERSION}; it has {version!r}.*expunge"):
        read_record(path)


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"record\.json does not exist\. Name the --output folder"):
        read_record(tmp_path)
    with pytest.raises(UsageError, match=r"nowhere does not exist"):
        read_record(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema_version": 1}',
        b"\xff\xfe",
        b'{"schema_version": 1, "kind": "run"}',
    ],
)
def test_a_corrupt_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"record\.json is not a run record"):
        read_record(path)


def test_a_truncated_record_is_refused(tmp_path: Path) -> None:
    path = write_record(run_record(), tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match="is not a run record"):
        read_record(path)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Metric.model_validate({"value": 0, "low": 0, "high": 0, "n": 1, "nn": 1})


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(sparse_record(seed=1), tmp_path)

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_record(sparse_record(seed=2), tmp_path)
    monkeypatch.undo()
    assert read_record(path).seed == 1
    assert os.listdir(tmp_path) == ["record.json"]
    write_record(sparse_record(seed=2), tmp_path)
    assert read_record(path).seed == 2


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "page.html", "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert write_atomically(tmp_path / "page.html", "x").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.skipif(
    tuple(map(int, VERSION.split(".")[:2])) < (2, 12),
    reason="older pydantic words the same schema differently",
)
def test_the_published_schema_is_in_sync() -> None:
    found = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert found == RunRecord.model_json_schema(), f"record.py has changed. Regenerate:\n{REGENERATE}"
