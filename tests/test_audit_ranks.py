"""Two processes (gloo) share an audit: each attack runs once, and the record is that of one process."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import audit_ranks_run as script
import audit_world as world
from expunge.audit_record import AuditRecord, read_audit
from test_distributed import launch


@pytest.fixture(scope="module")
def place(tmp_path_factory, taught_folder, model_folder) -> Path:
    """A folder with models, records and all that two processes left of their audits."""
    folder = tmp_path_factory.mktemp("audits")
    shutil.copytree(taught_folder, folder / "taught")
    shutil.copytree(model_folder, folder / "control")
    for name, records in script.SETS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    launch("audit_ranks_run.py", str(folder))
    return folder


@pytest.fixture(scope="module")
def found(place) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    return [json.loads((place / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(place) -> dict[str, Any]:
    """The record of one process, from the same command line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(script.PLACE, str(place / "alone-runs"))
        (place / "alone-runs").mkdir()
        whole = [*script.words(place, script.named(*script.OWN)), "--output", str(place / "alone"), "--json"]
        done = script.called(whole)
    assert done["status"] == 0, done["err"]
    return json.loads(done["out"])


def plain(record: dict[str, Any]) -> Any:
    """A record without times and sizes."""
    kept = {k: v for k, v in record.items() if k not in ("created", "timings", "peak_memory_bytes")}
    return world.without(kept, "seconds")


def runs(place: Path, name: str) -> list[Counter[str]]:
    """What was run how often, on each process."""
    files = [place / f"{name}-runs" / f"runs-{rank}.txt" for rank in (0, 1)]
    return [Counter(file.read_text().splitlines() if file.is_file() else ()) for file in files]


def test_the_record_is_that_of_one_process(place, found, alone):
    assert [one["shared"]["status"] for one in found] == [0, 0], found[0]["shared"]["err"]
    record = json.loads(found[0]["shared"]["out"])
    assert plain(record) == plain(alone)
    assert record["verdict"]["word"] == "not forgotten"
    entries = {entry["name"]: entry for entry in record["attacks"]}
    assert list(entries) == [*script.BUILT_IN, *(kind.name for kind in script.OWN)]
    assert entries["broken"]["why"] == "It failed with RuntimeError: the moon is wrong"
    assert "full moon" in entries["skipped"]["why"]
    assert "Not on control" in entries["failing"]["why"]
    assert found[1]["shared"]["out"] == found[1]["shared"]["err"] == "", "the first alone tells"


def test_every_attack_runs_on_one_process(place, found, alone):
    """The two that wait for each other cannot have run on the same one."""
    shared, single = runs(place, "shared"), runs(place, "alone")
    assert shared[0] + shared[1] == single[0]
    assert set(single[0].values()) == {1}
    assert not {line.split()[0] for line in shared[0]} & {line.split()[0] for line in shared[1]}
    assert all(shared)


def test_what_has_ended_on_either_is_not_run_again(place, found):
    assert [one["resumed"]["status"] for one in found] == [0, 0], found[0]["resumed"]["err"]
    assert read_audit(place / "shared") == AuditRecord.model_validate_json(found[0]["resumed"]["out"])
    again = runs(place, "resumed")
    assert sorted(line.split()[0] for line in (again[0] + again[1]).elements()) == ["broken", "failing"]
    written = "".join(path.read_text() for path in (place / "shared" / "findings").iterdir())
    texts = [row[key] for row in script.SETS["forget"] for key in ("prompt", "response")]
    assert not [text for text in texts if text in written]


def test_an_audit_in_memory_is_shared(place, found, alone):
    assert found[0]["memory"] == found[1]["memory"]
    record = json.loads(found[0]["memory"])
    single = [entry for entry in alone["attacks"] if entry["name"] in (*script.BUILT_IN, "noted")]
    assert world.without(record["attacks"], "seconds") == world.without(single, "seconds")
    shared = runs(place, "memory")
    assert sum((shared[0] + shared[1]).values()) == 2, "once on each model"


def test_what_one_refuses_ends_all(place, found):
    for one in found:
        assert one["knowing"].startswith("UsageError: --control must be a model that never saw")
        assert one["sharded"].startswith("ValueError: The unlearned model must be whole on every process")
        assert "DistributedDataParallel" in one["wrapped"]
        assert one["changed"]["status"] == 2
        assert "attack left must leave the model as it was" in " ".join(one["changed"]["err"].split())
    assert not (place / "changed" / "audit.json").exists()
    assert (place / "changed" / "findings" / "right-unlearned.json").is_file(), "what ended beside it is kept"


def test_a_process_that_is_told_to_end_ends_all(place, found):
    assert sorted(one["stopped"]["status"] for one in found) == [2, 130]
    said = {one["stopped"]["status"]: " ".join(one["stopped"]["err"].split()) for one in found}
    assert "another one has ended" in said[2]
    assert "attacks that had ended are kept" in said[130]
    assert not (place / "stopped" / "audit.json").exists()
    kept = {path.name for path in (place / "stopped" / "findings").iterdir()}
    assert kept >= {"prompt-unlearned.json", "prompt-control.json", "right-unlearned.json"}
    assert "left-unlearned.json" not in kept
