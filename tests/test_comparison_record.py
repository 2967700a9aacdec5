"""What follows from the trials: means, front, areas, refusals; and the files it is written to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import VERSION

from comparison_factory import LEVELS, comparison, header, record_of
from expunge.comparison_record import (
    Axis,
    Comparison,
    begun,
    ended,
    read_comparison,
    status_of,
    summarise,
    write_comparison,
)
from expunge.errors import UsageError
from expunge.front import hypervolume
from expunge.record import Stop
from expunge.report.comparison import markdown
from expunge.trials import Trial, of_method, plan
from record_factory import run_record

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "comparison.schema.json"


def test_means_and_ranges_over_seeds():
    found = {(s.method, bool(s.varied)): s for s in comparison().settings}
    ngdiff = found["ngdiff", False]
    assert ngdiff.forget.mean == pytest.approx(0.06)
    assert (ngdiff.forget.low, ngdiff.forget.high, ngdiff.forget.seeds) == pytest.approx((0.04, 0.08, 3))
    assert ngdiff.utility.mean == pytest.approx(0.91)
    holdout = comparison().before["holdout"]["nll"].value
    assert ngdiff.distance.mean == pytest.approx(3.3 - holdout)
    assert found["grad-ascent", False].distance.mean == pytest.approx(30 - holdout)


def test_the_front_holds_what_no_whole_setting_dominates():
    found = comparison()
    front = {s.method for s in found.settings if s.front}
    assert front == {"ngdiff", "grad-ascent", "simnpo"}
    assert [s.front for s in found.settings] == sorted((s.front for s in found.settings), reverse=True)
    kl_min = next(s for s in found.settings if s.method == "kl-min")
    assert not kl_min.whole
    assert not kl_min.front
    assert kl_min.forget.seeds == 2


def test_hypervolumes_are_those_of_the_means():
    found = {entry.method: entry for entry in comparison().methods}
    assert comparison().reference == (1.0, 0.0)
    assert found["ngdiff"].hypervolume == pytest.approx((1 - 0.06) * 0.91)
    assert found["npo"].settings == 2
    assert found["npo"].hypervolume == pytest.approx(hypervolume([(0.23, -0.79)], (1.0, 0.0)))
    assert found["kl-min"].hypervolume is None
    assert found["rmu"].hypervolume is None


def test_an_unbounded_axis_is_bounded_by_the_worst_that_was_measured():
    axis = Axis(split="forget", metric="nll", better="higher")
    found = comparison(forget_axis=axis)
    assert found.reference[0] == found.before["forget"]["nll"].value
    best = next(entry for entry in found.methods if entry.method == "grad-ascent")
    retain = next(s for s in found.settings if s.method == "grad-ascent").utility.mean
    assert best.hypervolume == pytest.approx((30 - found.reference[0]) * retain)


def test_an_axis_that_was_not_measured_is_said():
    found = comparison(forget_axis=Axis(split="forget", metric="grace", better="lower"))
    assert found.reference is None
    assert not any(s.front for s in found.settings)
    assert "forget/grace was not measured" in found.notes[0]
    assert "forget/leak" in found.notes[0]


def test_records_of_another_model_or_other_data_are_refused():
    trials = [Trial("ngdiff"), Trial("npo")]
    records = {trial.name: record_of(trial, LEVELS[trial.method]) for trial in trials}
    assert summarise(header(trials), records).model.sha256
    other = run_record().models["before"].model_copy(update={"sha256": "f" * 64})
    strange = records | {"npo-seed0": records["npo-seed0"].model_copy(update={"models": {"before": other}})}
    with pytest.raises(UsageError, match="same model; those of npo-seed0"):
        summarise(header(trials), strange)
    data = run_record().data
    data["forget"] = data["forget"].model_copy(update={"sha256": "f" * 64})
    with pytest.raises(UsageError, match="same forget records"):
        summarise(header(trials, data=data), records)


@pytest.mark.parametrize(
    ("stop", "stages", "status"),
    [
        (None, ["before"], "interrupted"),
        (("interrupted", None), ["before"], "interrupted"),
        (("forgotten", None), ["before"], "interrupted"),
        (("forgotten", None), ["before", "after"], "done"),
        (("diverged", None), ["before"], "diverged"),
        (("diverged", 4), ["before"], "interrupted"),
        (("diverged", 4), ["before", "after"], "done"),
    ],
)
def test_how_a_run_ended_is_read_from_its_record(stop, stages, status):
    record = run_record()
    made = stop and Stop(reason=stop[0], sentence="", step=5, restored_step=stop[1])
    evaluations = {stage: record.evaluations[stage] for stage in stages}
    record = record.model_copy(update={"stop": made, "evaluations": evaluations})
    assert status_of(record) == status
    assert ended(begun(Trial("ngdiff")), record).status == status


def test_the_file_reads_back_and_others_are_refused(tmp_path):
    found = comparison()
    write_comparison(found, tmp_path)
    assert read_comparison(tmp_path) == found
    raw = json.loads((tmp_path / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps(raw | {"schema_version": 9}))
    with pytest.raises(UsageError, match="schema version 1; it has 9"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text(json.dumps(raw | {"surprise": 1}))
    with pytest.raises(UsageError, match="not a comparison"):
        read_comparison(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_comparison(tmp_path / "nowhere")


def test_nan_survives_the_file(tmp_path):
    found = comparison()
    entry = found.trials[0]
    splits = {"forget": {"nll": entry.splits["forget"]["nll"].model_copy(update={"value": math.nan})}}
    trials = [entry.model_copy(update={"splits": splits}), *found.trials[1:]]
    write_comparison(found.model_copy(update={"trials": trials}), tmp_path)
    assert math.isnan(read_comparison(tmp_path).trials[0].splits["forget"]["nll"].value)


@pytest.mark.skipif(
    tuple(map(int, VERSION.split(".")[:2])) < (2, 12),
    reason="older pydantic words the same schema differently",
)
def test_the_published_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == Comparison.model_json_schema()


def test_the_markdown_table_has_one_row_per_setting_and_stays_a_table():
    found = comparison()
    lines = [line for line in markdown(found).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + len(found.settings)
    for line in lines:
        assert line.replace("\\|", "").count("|") == 9
    assert r"| ngdiff \* | 6 % \[4–8\] | 91 % \[89–93\] |" in markdown(found).replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_names_of_trials_are_safe_and_different():
    names = [
        Trial("npo", {"learning_rate": 1e-5}, seed=2).name,
        Trial("../x.py:mine").name,
        Trial("__x.py_mine").name,
        Trial("npo", {"refusals": "a/b"}).name,
        Trial("npo", {"refusals": "a_b"}).name,
        Trial("npo", {"refusals": "x" * 400}).name,
    ]
    assert names[0] == "npo-learning_rate=1e-05-seed2"
    assert len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") and len(name) < 150 for name in names)


def test_a_plan_is_every_setting_with_every_seed():
    trials = plan(
        ["ngdiff", "npo"], [3, 1], {"max_steps": 5, "npo:beta": 0.2}, {"npo:learning_rate": [1e-5, 1e-4]}
    )
    assert [trial.name for trial in trials] == [
        "ngdiff-seed3",
        "npo-learning_rate=1e-05-seed3",
        "npo-learning_rate=0.0001-seed3",
        "ngdiff-seed1",
        "npo-learning_rate=1e-05-seed1",
        "npo-learning_rate=0.0001-seed1",
    ]
    assert trials[0].fixed == {"max_steps": 5}
    assert trials[1].fixed == {"max_steps": 5, "beta": 0.2}
    assert {trial.evaluation_seed for trial in trials} == {3}
    assert of_method({"a.py:f:rate": 1, "rate": 0}, "a.py:f") == {"rate": 1}
