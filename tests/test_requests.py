"""Erasure requests one after another: what was removed stays removed, against the very first model."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

import conftest
import expunge
from expunge import UsageError, cli, terminal
from expunge.batching import RowStream
from expunge.chain import earlier_splits, read_chain
from expunge.companions import accompany, join_rows
from expunge.record import Check, read_record
from expunge.report import render
from expunge.stopping import with_earlier
from expunge.unlearner import Unlearner
from expunge.verify import verify

ROWS = conftest.rows()
REQUESTS, RETAIN = (ROWS[:4], ROWS[4:8], ROWS[8:10]), ROWS[10:]
KEPT = (ROWS[4:], ROWS[8:], ROWS[10:])
"""What every request keeps: records of later requests are still wanted then."""
HOLDOUT = conftest.rows(("Ivy Iris", "Jon Juniper"))
pytestmark = pytest.mark.usefixtures("no_pages")
QUICK = {"bf16": False, "template": "none", "seed": 0}
TINY = {**QUICK, "max_steps": 40, "learning_rate": 1e-3, "tolerance": 0.5, "rows": 6, "check_every": 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The sets as files, as a chain needs them."""
    folder = tmp_path_factory.mktemp("sets")
    sets = {"holdout": HOLDOUT, "retain": RETAIN}
    for number, (rows, kept) in enumerate(zip(REQUESTS, KEPT, strict=True), start=1):
        sets |= {f"forget{number}": rows, f"retain{number}": kept}
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: folder / f"{name}.jsonl" for name in sets}


@pytest.fixture(scope="module")
def chain(taught_folder, files, no_pages, tmp_path_factory):
    """Three requests, each after the one before."""
    folder = tmp_path_factory.mktemp("chain")
    sources = ({"model": taught_folder}, {"after": folder / "one"}, {"after": folder / "two"})
    for number, (name, source) in enumerate(zip(("one", "two", "three"), sources, strict=True), start=1):
        sets = {"forget": files[f"forget{number}"], "retain": files[f"retain{number}"]}
        expunge.unlearn(output=folder / name, **source, **sets, **TINY)
    return folder


@pytest.fixture
def copy(chain, tmp_path):
    """The chain, to be damaged."""
    for name in ("one", "two", "three"):
        shutil.copytree(chain / name, tmp_path / name)
    return tmp_path


def test_earlier_requests_stay_forgotten_and_are_measured_again(chain):
    record = read_record(chain / "three")
    names = {"forget", "retain", "forgotten-1", "forgotten-2"}
    assert set(record.evaluations["after"].splits) == set(record.evaluations["before"].splits) == names
    leak = {split: found["leak"].value for split, found in record.evaluations["after"].splits.items()}
    assert {name: value for name, value in leak.items() if name != "retain"} == {
        "forget": 0.0, "forgotten-1": 0.0, "forgotten-2": 0.0,
    }  # fmt: skip
    assert leak["retain"] >= 0.5
    assert record.evaluations["before"].splits["forget"]["leak"].value >= 0.5
    assert record.data["forgotten-1"].sha256 == read_record(chain / "one").data["forget"].sha256
    assert all(check.earlier_nll is not None for check in record.checks)


def test_the_record_chains_to_its_predecessor_and_to_the_first_model(chain):
    records = [read_record(chain / name) for name in ("one", "two", "three")]
    assert records[0].after is None
    assert [record.after.request for record in records[1:]] == [2, 3]
    digest = hashlib.sha256((chain / "two" / "record.json").read_bytes()).hexdigest()
    assert records[2].after.record_sha256 == digest
    assert records[2].after.first == records[0].models["before"]
    assert records[2].models["before"].sha256 == records[1].models["after"].sha256
    found = read_chain(chain / "three")
    assert [len(rows) for rows in found.earlier.values()] == [4, 4, 2]
    assert len(found.forgotten) == 10


def test_utility_is_accounted_against_the_first_model(chain, taught_folder, files, tmp_path):
    """The first reading of a continued run compares with the first model, not with its own start."""
    record = read_record(chain / "three")
    first = record.after.first_evaluation.splits["retain"]
    again = expunge.evaluate(
        taught_folder, retain=files["retain3"], output=tmp_path / "first", **QUICK
    ).record
    assert first == again.evaluations["before"].splits["retain"]
    assert record.evaluations["before"].splits["retain"]["nll"].value != first["nll"].value
    reading = record.probes[0]
    assert reading.step == 0
    assert reading.standard_error > 0  # a run that is compared with its own start reads exactly 0 there
    page = render(record)
    assert "the first model of 3 requests" in page
    assert "Is what was removed earlier still gone?" in page
    assert "Still gone" in page


def test_a_run_that_starts_over_budget_repairs_first(chain, files):
    """Damage that earlier requests did counts: with the budget spent, the first step repairs."""
    sets = {"forget": files["forget2"], "retain": files["retain2"]}
    tight = TINY | {"tolerance": 1e-6, "max_steps": 1, "rows": 8}
    fresh = expunge.unlearn(chain / "one" / "model", evaluate=False, **sets, **tight).record
    assert not fresh.history[0].repair
    continued = expunge.unlearn(after=chain / "one", **sets, **tight).record
    had, has = continued.after.first_evaluation, continued.evaluations["before"]
    assert has.splits["retain"]["nll"].value > had.splits["retain"]["nll"].value  # the first request's damage
    assert continued.probes[0].decision == "repair: over budget"
    assert continued.history[0].repair


def test_an_interrupted_request_resumes_to_the_same_model(chain, files, tmp_path, monkeypatch):
    original = Unlearner.after_optimizer

    def interrupting(self):
        original(self)
        if self.state.global_step == 2:
            self.interrupt.requested = True

    sets = {"forget": files["forget2"], "retain": files["retain2"]}
    words = {**sets, "after": chain / "one", "evaluate": False}
    few = TINY | {"max_steps": 5, "check_every": 0}
    whole = expunge.unlearn(**words, **few)
    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", interrupting)
        expunge.unlearn(**words, output=tmp_path / "out", **few)
    with pytest.raises(UsageError, match="same data, method and settings"):
        expunge.unlearn(
            chain / "one" / "model", output=tmp_path / "out", resume=True, evaluate=False, **sets, **few
        )
    resumed = expunge.unlearn(**words, output=tmp_path / "out", resume=True, **few)
    assert resumed.record.models["after"].sha256 == whole.record.models["after"].sha256
    assert resumed.record.probes == whole.record.probes
    assert resumed.record.after == whole.record.after


def test_every_micro_batch_holds_a_few_earlier_rows_and_pairs_stay_together():
    rows = {"forget": [*"abcdefgh"], "idk": [*"abcdefghxyz"], "retain": [*"rstu"], "forgotten": [*"xyz"]}
    encoded, own = join_rows(rows)
    assert "".join(encoded["forget"]) == "abcdefghxyz"
    assert own == {"forget": 8, "idk": 11, "retain": 4}
    stream = RowStream([1] * 8, 4, (0,))
    streams = {"forget": stream, "idk": stream, "retain": RowStream([1] * 4, 4, (0,))}
    found = accompany(streams, encoded, own, {"forgotten": 2}, seed=0)
    drawn = [found["forget"](step) for step in range(6)]
    assert drawn == [found["idk"](step) for step in range(6)]
    assert all(sum(row >= 8 for row in rows) in (1, 2) for rows in drawn)
    assert {row for rows in drawn for row in rows} == set(range(11))
    assert found["retain"] is streams["retain"]
    assert accompany(streams, encoded, own, {"forgotten": 0}, seed=0) == streams
    alone = accompany({"idk": stream, "retain": streams["retain"]}, encoded, own, {"forgotten": 2}, seed=0)
    assert {row for step in range(6) for row in alone["idk"](step)} == set(range(11))


def _check(nll: float, leak: float, *, control: float = 3.0, met: bool = True) -> Check:
    return Check(
        step=0, forget_nll=nll, forget_leak=leak, control="holdout", control_nll=control,
        control_leak=0.1, met=met,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("now", "start", "met"),
    [
        ((4.0, 0.0), (5.0, 0.0), True),  # less unlikely than it was, still as unlikely as the control
        ((2.5, 0.0), (2.5, 0.0), True),  # an earlier request that fell short is not made good
        ((2.4, 0.0), (2.5, 0.0), False),
        ((4.0, 0.3), (5.0, 0.0), False),  # comes back
        ((4.0, 0.3), (5.0, 0.3), True),
    ],
)
def test_a_request_is_served_only_while_earlier_ones_stay_served(now, start, met):
    found = with_earlier(_check(4.0, 0.0), _check(*now), _check(*start))
    assert found.met is met
    assert (found.earlier_nll, found.earlier_leak) == now
    assert not with_earlier(_check(1.0, 0.5, met=False), _check(*now), _check(*start)).met


def refused(message: str, **words: object) -> None:
    with pytest.raises(UsageError, match=message):
        expunge.unlearn(**{"retain": RETAIN, **TINY, **words})  # type: ignore[arg-type]


def test_what_is_no_finished_run_is_refused(taught_folder, files, tmp_path):
    refused("does not exist", after=tmp_path, forget=files["forget2"])
    refused("is of kind finetune", after=taught_folder.parent, forget=files["forget2"])


def test_an_unfinished_run_is_refused(copy, files):
    path = copy / "one" / "record.json"
    record = json.loads(path.read_text())
    record["stop"]["reason"] = "interrupted"
    path.write_text(json.dumps(record))
    refused("has not ended", after=copy / "one", forget=files["forget2"])
    shutil.rmtree(copy / "two" / "model")
    refused("lacks model/", after=copy / "two", forget=files["forget3"])


def test_what_an_earlier_request_removed_is_not_kept_again(chain, files):
    refused(
        "The retain set holds what request 1 removed",
        after=chain / "two", forget=files["forget3"], retain=RETAIN + REQUESTS[0][:1],
    )  # fmt: skip
    refused(
        "The holdout set holds what request 2 removed",
        after=chain / "two", forget=files["forget3"], holdout=HOLDOUT + REQUESTS[1][:1],
    )  # fmt: skip


def test_changed_or_lost_earlier_data_is_refused_and_moved_data_is_found(chain, files, tmp_path):
    moved = shutil.copytree(files["retain"].parent, tmp_path / "moved")
    first, second = moved / "forget1.jsonl", moved / "forget2.jsonl"
    words = {"after": chain / "two", "forget": files["forget3"]}
    refused("one forget set per earlier request", **words, forgotten=[first])
    first.write_text(first.read_text().replace("555", "556", 1))
    refused("request 1 must be what it was", **words, forgotten=[first, second])
    refused("must be readable, to test it again", **words, forgotten=[moved / "none.jsonl", second])
    refused("--forgotten and --original belong to --after", forget=RETAIN, model="no/such", forgotten=[first])
    found = read_chain(chain / "two", [files["forget1"], second])
    assert list(found.earlier) == ["forgotten-1", "forgotten-2"]


def test_data_in_memory_must_be_given_again(taught_folder, tmp_path):
    words = {"output": tmp_path / "m", "evaluate": False, **TINY, "max_steps": 1}
    expunge.unlearn(taught_folder, forget=REQUESTS[0], retain=RETAIN, **words)
    with pytest.raises(UsageError, match=r"must be readable, to test it again.*--forgotten"):
        read_chain(tmp_path / "m")
    assert len(read_chain(tmp_path / "m", [REQUESTS[0]]).earlier["forgotten-1"]) == 4


def test_a_broken_chain_is_refused(copy, files):
    words = {"after": copy / "three", "forget": HOLDOUT[:2]}
    path = copy / "two" / "record.json"
    whole = path.read_text()
    link = json.loads((copy / "three" / "record.json").read_text())
    link["after"]["folder"] = str(copy / "two")
    (copy / "three" / "record.json").write_text(json.dumps(link))
    path.write_text(whole.replace('"seed": 0', '"seed": 1', 1))
    refused("two/record.json is not the record that .*three continued", **words)
    path.write_text(whole)
    read_chain(copy / "three")
    link["after"]["request"] = 4
    (copy / "three" / "record.json").write_text(json.dumps(link))
    refused("is broken: .*was request 2", **words)
    link["after"]["request"] = 3
    link["after"]["folder"] = "nowhere/none"
    (copy / "three" / "record.json").write_text(json.dumps(link))
    refused("none, which it continued, holds no record.json", **words)


def test_a_chain_that_moved_as_a_whole_is_found(chain, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(chain, moved)
    folders = ["one", "two", "three"]
    for name in folders[1:]:
        path = moved / name / "record.json"
        record = json.loads(path.read_text())
        assert record["after"]["folder"] == str(chain / folders[folders.index(name) - 1])
    shutil.move(chain / "one", chain / "one-away")
    try:
        assert len(read_chain(moved / "two").records) == 2
    finally:
        shutil.move(chain / "one-away", chain / "one")


def test_another_model_is_refused(copy, taught_folder, files):
    refused("--model must be the result", model=taught_folder, after=copy / "one", forget=files["forget2"])
    shutil.rmtree(copy / "one" / "model")
    shutil.copytree(taught_folder, copy / "one" / "model")
    refused("were changed after the run", after=copy / "one", forget=files["forget2"])


def test_the_first_model_must_be_the_first_model(chain, files, tmp_path):
    words = {"after": chain / "one", "forget": files["forget2"]}
    refused("must be the model before the first request", **words, original=chain / "one" / "model")
    refused("Say where it lies now by --original", **words, original=tmp_path / "gone")


def test_a_record_asked_for_twice_is_noted(chain, files):
    words = {"method": "grad-ascent", "evaluate": False, "max_steps": 1, **QUICK}
    result = expunge.unlearn(after=chain / "one", forget=files["forget1"], **words)
    assert any("4 forget records were asked for" in note for note in result.record.notes)


def test_the_command_line_continues_a_run(chain, taught_folder, files, tmp_path, capsys):
    words = ["run", "--after", chain / "one", "--forget", files["forget2"], "--retain", files["retain2"]]
    options = ["--template", "none", "--set", "bf16=false", "--set", "max_steps=1", "--set", "rows=6"]
    line = [str(word) for word in [*words, "--output", tmp_path / "out", *options, "--quiet"]]
    assert terminal.guarded(lambda: cli.app(line, exit_on_error=False, print_error=False)) == 0
    assert read_record(tmp_path / "out").after.request == 2
    line = [str(word) for word in [*words, "--model", taught_folder, "--output", tmp_path / "b"]]
    assert terminal.guarded(lambda: cli.app(line, exit_on_error=False, print_error=False)) == 2
    assert "--model must be the result" in capsys.readouterr().err


def test_splits_of_earlier_requests_are_known_by_name():
    names = ["retain", "forgotten-10", "forgotten-2", "forgotten-x", "forgotten-"]
    assert earlier_splits(names) == ["forgotten-2", "forgotten-10"]


def test_verify_checks_the_predecessor(copy):
    """Its record is hashed again, where it is; a changed one differs."""

    def found(folder):
        (finding,) = [f for f in verify(copy / folder) if f.what.startswith("predecessor")]
        return finding.verdict

    assert [f for f in verify(copy / "one") if f.what.startswith("predecessor")] == []
    assert found("two") == "verified"
    link = json.loads((copy / "two" / "record.json").read_text())
    link["after"]["folder"] = str(copy / "one")
    (copy / "two" / "record.json").write_text(json.dumps(link))
    (copy / "one" / "record.json").write_text((copy / "one" / "record.json").read_text() + " ")
    assert found("two") == "differs"
    (copy / "one" / "record.json").unlink()
    assert found("two") == "not checked"
