"""Comparisons end to end on the tiny model: nothing twice, nothing lost, no failure that spreads."""

from __future__ import annotations

import gc
import json
import re

import pytest

import conftest
import expunge
from expunge import UsageError, api, cli, tables, terminal
from expunge.comparison import EVALUATIONS, merge, refresh
from expunge.comparison_record import read_comparison, write_comparison
from expunge.record import read_record, write_record
from expunge.runs import Run
from expunge.unlearner import Unlearner

ROWS = conftest.rows()
SETS = {"forget": ROWS[:6], "retain": ROWS[6:], "holdout": conftest.rows(("Ivy Iris", "Jon Juniper"))}
QUICK = {"bf16": False, "template": "none", "max_steps": 3, "check_every": 0, "learning_rate": 1e-3}
METHODS = ["ngdiff", "grad-diff", "grad-ascent"]


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Every trial collects garbage several times; what stood before these tests need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def study(model_folder, tmp_path_factory):
    """Three methods on two seeds, and how often a model was measured."""
    folder, measured, original = tmp_path_factory.mktemp("study") / "out", [], tables.score
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("expunge.runs.write_report", lambda _, place: (place / "report.html").touch())
        patched.setattr(tables, "score", lambda *w, **k: measured.append(k) or original(*w, **k))
        found = expunge.compare(model_folder, methods=METHODS, seeds=[0, 1], output=folder, **SETS, **QUICK)
    return found, folder, measured


@pytest.fixture
def no_pages(monkeypatch):
    """Pages are not what is tested here; drawing them takes the most time."""
    monkeypatch.setattr("expunge.runs.write_report", lambda *_: None)
    monkeypatch.setattr("expunge.comparison.write_page", lambda *_: None)


def test_every_trial_is_a_run_with_its_own_page(study):
    found, folder, _ = study
    names = [f"{method}-seed{seed}" for seed in (0, 1) for method in METHODS]
    assert [trial.name for trial in found.trials] == names
    assert {trial.status for trial in found.trials} == {"done"}
    page = (folder / "report.html").read_text()
    for trial in found.trials:
        record = read_record(folder / trial.name)
        assert (record.method, record.seed) == (trial.method, trial.seed)
        assert record.evaluations["after"].splits == trial.splits
        assert f'href="./{trial.name}/report.html"' in page
        assert (folder / trial.name / "report.html").is_file()
        assert not (folder / trial.name / "model").exists()
        assert not (folder / trial.name / "checkpoints").exists()
    assert read_comparison(folder) == found
    assert found.disk_bytes > 10_000
    assert {s.method for s in found.settings} == set(METHODS)
    assert all(s.whole and s.forget.seeds == 2 for s in found.settings)


def test_the_model_before_is_measured_once_and_every_record_has_it(study):
    found, folder, measured = study
    assert len(measured) == 1 + len(found.trials)
    records = [read_record(folder / trial.name) for trial in found.trials]
    assert [r.evaluations["before"] for r in records] == [records[0].evaluations["before"]] * len(records)
    assert all(set(record.samples[0].generations) == {"before", "after"} for record in records)
    assert records[3].configuration["evaluation_seed"] == 0
    assert found.before == records[0].evaluations["before"].splits


def test_what_is_taken_over_is_what_would_have_been_measured(study, model_folder):
    found, _, _ = study
    sets = {name: tuple(rows) for name, rows in SETS.items()}
    fresh = expunge.evaluate(model_folder, **sets, bf16=False, template="none", seed=0)
    assert fresh.record.evaluations["before"].splits == found.before


def test_a_trial_that_ended_just_before_a_kill_is_not_run_again(
    study, model_folder, tmp_path, monkeypatch, no_pages
):
    import shutil

    found, folder, _ = study
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    stale = [t.model_copy(update={"status": "pending", "splits": {}, "stop": None}) for t in found.trials]
    write_comparison(found.model_copy(update={"trials": stale}), out)
    monkeypatch.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran again"))
    again = expunge.compare(
        model_folder, methods=METHODS, seeds=[0, 1], output=out, resume=True, **SETS, **QUICK
    )
    assert again.trials == found.trials


def test_parts_that_ran_side_by_side_are_merged_into_the_same_comparison(
    study, model_folder, tmp_path, no_pages
):
    found, _folder, _ = study
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, seed in zip(parts, (0, 1), strict=True):
        words = {"methods": METHODS, "seeds": [seed], "evaluation_seed": 0, "output": part}
        expunge.compare(model_folder, **words, **SETS, **QUICK)
    merged = merge(parts, tmp_path / "whole")
    assert {(t.name, t.evaluation_seed) for t in merged.trials} == {
        (t.name, t.evaluation_seed) for t in found.trials
    }
    assert {s.method: s.forget for s in merged.settings} == {s.method: s.forget for s in found.settings}
    assert merged.methods == found.methods
    assert all((tmp_path / "whole" / trial.name / "record.json").is_file() for trial in merged.trials)
    assert merge(parts, tmp_path / "whole").trials == merged.trials
    assert {t.name for t in merge(parts[1:], tmp_path / "more").trials} < {t.name for t in merged.trials}
    added = merge([parts[0], tmp_path / "more"], tmp_path / "more")  # what stood there is one of the parts
    assert {t.name for t in added.trials} == {t.name for t in merged.trials}
    other = tmp_path / "c"
    expunge.compare(model_folder, methods=["npo"], output=other, **{**SETS, "forget": ROWS[:5]}, **QUICK)
    with pytest.raises(UsageError, match=f"the same data; that of {other} has another"):
        merge([*parts, other], tmp_path / "whole")
    for number, (change, message) in enumerate(OTHERWISE):
        unlike = tmp_path / f"unlike-{number}"
        unlike.mkdir()
        write_comparison(change(read_comparison(parts[1])), unlike)
        with pytest.raises(UsageError, match=message):
            merge([parts[0], unlike], tmp_path / "whole")
    with pytest.raises(ValueError, match="at least one"):
        merge([], tmp_path / "whole")


def test_the_same_bytes_elsewhere_are_the_same_study(study, model_folder, tmp_path, monkeypatch, no_pages):
    import shutil

    found, folder, _ = study
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    moved = {name: entry.model_copy(update={"source": f"gone/{name}"}) for name, entry in found.data.items()}
    write_comparison(found.model_copy(update={"source": "gone/model", "data": moved}), out)
    monkeypatch.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran again"))
    words = {"methods": METHODS, "seeds": [0, 1], "output": out, "resume": True, **SETS, **QUICK}
    again = expunge.compare(model_folder, **words)
    assert (again.source, again.data, again.trials) == (str(model_folder), found.data, found.trials)
    shutil.copytree(folder, tmp_path / "part")
    write_comparison(found.model_copy(update={"source": "gone/model", "data": moved}), tmp_path / "part")
    assert merge([folder, tmp_path / "part"], tmp_path / "whole").trials == found.trials
    shutil.copytree(model_folder, tmp_path / "other")
    conftest.build_model(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="same --model"):
        expunge.compare(tmp_path / "other", **words)
    fields = {name: e.model_copy(update={"fields": {"prompt": "question"}}) for name, e in moved.items()}
    write_comparison(found.model_copy(update={"data": fields}), tmp_path / "part")
    with pytest.raises(UsageError, match="same data"):
        merge([folder, tmp_path / "part"], tmp_path / "whole")


def trials_with(found, **changes):
    """A comparison whose trials were asked otherwise."""
    return found.model_copy(update={"trials": [t.model_copy(update=changes) for t in found.trials]})


def with_defaults(found, **changes):
    """A comparison whose trials were asked when their methods had other defaults."""
    trials = [t.model_copy(update={"resolved": t.resolved | changes}) for t in found.trials]
    return found.model_copy(update={"trials": trials})


def test_a_name_that_stands_for_something_else_by_now_is_refused(
    study, model_folder, tmp_path, monkeypatch, no_pages
):
    import shutil

    found, folder, _ = study
    assert "seed" not in found.trials[0].resolved
    assert found.trials[0].resolved == found.trials[3].resolved != found.trials[1].resolved
    shutil.copytree(folder, tmp_path / "out")
    write_comparison(with_defaults(found, relative_sharpness=0.5), tmp_path / "out")
    monkeypatch.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran"))
    words = {"output": tmp_path / "out", "resume": True, **SETS, **QUICK}
    for seeds in ([0], [0, 7]):
        with pytest.raises(UsageError, match=r"ngdiff-seed0 .* relative_sharpness was 0\.5 in .* is 2.4e-05"):
            expunge.compare(model_folder, methods=["ngdiff"], seeds=seeds, **words)
    write_comparison(trials_with(found, resolved={}), tmp_path / "out")  # as earlier versions left it
    assert len(expunge.compare(model_folder, methods=["ngdiff"], **words).trials) == len(found.trials)


OTHERWISE = [
    (
        lambda found: with_defaults(found, weighting="Other()"),
        r"weighting is Normalized.* elsewhere and Other\(\) in",
    ),
    (lambda found: trials_with(found, fixed={**QUICK, "max_steps": 4}), "max_steps is 3 elsewhere and 4 in"),
    (lambda found: trials_with(found, evaluation_seed=1), "evaluation_seed is 0 elsewhere and 1 in"),
    (lambda found: found.model_copy(update={"options": {"rows": 5}}), "must have the same --option"),
    (lambda found: found.model_copy(update={"control": "retrained"}), "must have the same --reference"),
]
"""What parts must not differ in, and how they are refused."""


def test_means_of_trials_that_were_given_different_things_say_so(study, tmp_path, no_pages):
    import shutil

    _found, folder, _ = study
    shutil.copytree(folder, tmp_path / "out")
    assert refresh(tmp_path / "out").notes == []
    record = read_record(tmp_path / "out" / "ngdiff-seed1")
    changed = record.configuration | {"sharpness": 0.0, "max_steps": 9}
    write_record(record.model_copy(update={"configuration": changed}), tmp_path / "out" / "ngdiff-seed1")
    notes = refresh(tmp_path / "out").notes
    assert any(
        re.fullmatch(r"The means of ngdiff are of .* differ in max_steps \(3, 9\)\.", n) for n in notes
    )
    assert any(re.search(r"of ngdiff are .* differ in sharpness \(0\.0\d+, 0\)", n) for n in notes)
    assert "Not all methods had the same max_steps (3, 9)." in notes
    assert len(notes) == 3


def test_a_second_call_runs_nothing_and_a_third_adds(study, model_folder, tmp_path, monkeypatch, no_pages):
    import shutil

    found, folder, _ = study
    shutil.copytree(folder, tmp_path / "out")
    place = {"output": tmp_path / "out", "resume": True}
    with monkeypatch.context() as patched:
        patched.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran again"))
        again = expunge.compare(model_folder, methods=METHODS, seeds=[0, 1], **place, **SETS, **QUICK)
        assert refresh(tmp_path / "out").trials == again.trials == found.trials
    added = expunge.compare(
        model_folder, methods=["npo"], grid={"npo:beta": [0.1, 0.5]}, **place, **SETS, **QUICK
    )
    assert [trial.name for trial in added.trials[6:]] == ["npo-beta=0.1-seed0", "npo-beta=0.5-seed0"]
    assert {trial.status for trial in added.trials} == {"done"}
    assert added.trials[:6] == found.trials
    for words, message in (
        ({"max_steps": 4}, "max_steps was 3 in"),
        ({"forget": ROWS[:5]}, "same data"),
        ({"seeds": [1, 0]}, "begin --seeds with 0"),
        ({"seeds": [7]}, "begin --seeds with 0, .* got 7"),
        ({"seeds": [7], "evaluation_seed": 0, "max_steps": 4}, "ngdiff-seed7 .* max_steps was 3 in"),
        ({"resume": False}, "Give --resume"),
    ):
        with pytest.raises(UsageError, match=message):
            expunge.compare(model_folder, methods=["ngdiff"], **{**place, **SETS, **QUICK, **words})
    assert read_comparison(tmp_path / "out").trials == added.trials


def test_an_interrupted_comparison_continues_to_the_same_models(
    study, model_folder, tmp_path, monkeypatch, no_pages
):
    """Stopped within the second trial's training, then in the third's evaluation, then finished."""
    found, folder, _ = study
    step, evaluate = Unlearner.after_optimizer, Run.evaluate

    def in_training(self):
        step(self)
        if self.state.global_step == 2 and "grad-diff" in str(self.args.output_dir):
            self.interrupt.requested = True

    def in_evaluation(self, stage, *words):
        if stage == "after" and "grad-ascent" in str(self.folder):
            raise KeyboardInterrupt
        evaluate(self, stage, *words)

    words = {"methods": METHODS, "output": tmp_path / "out", **SETS, **QUICK}
    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", in_training)
        first = expunge.compare(model_folder, **words)
    assert [trial.status for trial in first.trials] == ["done", "interrupted", "pending"]
    assert "2 of 3 trials have not ended" in first.notes[-1]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", in_evaluation)
        with pytest.raises(KeyboardInterrupt):
            expunge.compare(model_folder, **words, resume=True)
    assert (tmp_path / "out" / "grad-ascent-seed0" / "model").is_dir()
    last = expunge.compare(model_folder, **words, resume=True)
    assert {trial.status for trial in last.trials} == {"done"}
    assert [trial.splits for trial in last.trials] == [trial.splits for trial in found.trials[:3]]
    for trial in last.trials:
        mine, theirs = (
            read_record(place / trial.name).models["after"] for place in (tmp_path / "out", folder)
        )
        assert mine.sha256 == theirs.sha256
        assert not (tmp_path / "out" / trial.name / "model").exists()
    assert "interrupted and continued" in " ".join(last.notes)


def test_divergence_and_failure_stop_no_other_trial(model_folder, tmp_path, monkeypatch, no_pages):
    own = tmp_path / "mine.py"
    own.write_text("from expunge.methods import grad_diff\ndef broken():\n    return grad_diff()\n")
    original = api.unlearn

    def failing(*words, **settings):
        if settings["method"].endswith(":broken") and not fixed:
            raise RuntimeError("out of <memory>")
        return original(*words, **settings)

    fixed: list[int] = []
    monkeypatch.setattr(api, "unlearn", failing)
    words = {
        "methods": ["grad-ascent", f"{own}:broken", "ngdiff"],
        "output": tmp_path / "out",
        "grid": {"grad-ascent:learning_rate": [1e-3, 1e30]},
        "keep_models": True,
        **SETS,
        **{key: value for key, value in QUICK.items() if key != "learning_rate"},
    }
    found = expunge.compare(model_folder, **words)
    assert [trial.status for trial in found.trials] == ["done", "diverged", "failed", "done"]
    assert found.trials[1].stop.reason == "diverged"
    assert found.trials[2].error == "RuntimeError: out of <memory>"
    kept = [(tmp_path / "out" / trial.name / "model").is_dir() for trial in found.trials]
    assert kept == [True, False, False, True]
    assert not any(s.front for s in found.settings if not s.whole)
    left = tmp_path / "out" / found.trials[2].name
    assert {path.name for path in left.iterdir()} == {".expunge", "error.txt"}
    fixed.append(1)
    again = expunge.compare(model_folder, **words, resume=True)
    assert not (left / "error.txt").exists()
    assert [trial.status for trial in again.trials] == ["done", "diverged", "done", "done"]


def test_a_trial_that_failed_goes_on_from_what_it_left(model_folder, tmp_path, monkeypatch, no_pages, caplog):
    """It fails in training behind a checkpoint, then in its evaluation, then in neither."""
    step, evaluate, train = Unlearner.after_optimizer, Run.evaluate, Unlearner.train
    begun_at: list[int] = []

    def failing_step(self):
        step(self)
        if self.state.global_step == 2:  # counted behind the step: this is the third
            raise RuntimeError("out of <memory>")

    def failing_evaluation(self, stage, *words):
        if stage == "after":
            raise RuntimeError("out of <memory>")
        evaluate(self, stage, *words)

    def counting(self, *words, **settings):
        begun_at.append(len(self.history))
        return train(self, *words, **settings)

    monkeypatch.setattr(Unlearner, "train", counting)
    out = tmp_path / "out"
    place = out / "grad-ascent-seed0"
    words = {"methods": ["grad-ascent"], "output": out, **SETS, **QUICK, "save_steps": 1}
    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", failing_step)
        assert expunge.compare(model_folder, **words).trials[0].status == "failed"
    assert (place / "checkpoints" / "checkpoint-2").is_dir()
    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", failing_evaluation)
        assert expunge.compare(model_folder, **words, resume=True).trials[0].status == "failed"
    assert begun_at == [0, 2]
    assert (place / "model").is_dir()
    assert (place / "checkpoints").is_dir()
    said = (place / "error.txt").read_text()
    assert "RuntimeError: out of <memory>" in said
    assert "in failing_evaluation" in said
    assert (place / "error.txt").stat().st_mode & 0o077 == 0
    assert "failed: RuntimeError: out of <memory> (traceback: " in caplog.text
    last = expunge.compare(model_folder, **words, resume=True)
    assert last.trials[0].status == "done"
    assert begun_at == [0, 2]
    assert {path.name for path in place.iterdir()} == {".expunge", ".lock", "record.json"}
    assert "from the beginning" not in caplog.text


@pytest.mark.parametrize("redact", [True, False])
def test_a_redacted_comparison_leaves_no_record_anywhere(model_folder, tmp_path, redact):
    out, words = tmp_path / "out", {"methods": ["grad-ascent"], **SETS, **QUICK}
    found = expunge.compare(model_folder, output=out, redact=redact, **words)
    assert found.trials[0].status == "done"
    assert (out / EVALUATIONS).is_dir() is not redact
    responses = {row["response"] for rows in SETS.values() for row in rows}
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in out.rglob("*") if path.is_file()]
    assert len(texts) >= 4
    assert any(response in text for text in texts for response in responses) is not redact


def test_a_trial_whose_rest_is_of_another_run_starts_from_the_beginning(
    model_folder, tmp_path, monkeypatch, no_pages, caplog
):
    evaluate = Run.evaluate

    def failing(self, stage, *words):
        if stage == "after":
            raise RuntimeError("Ada Ash lives at 11 Ash Street")
        evaluate(self, stage, *words)

    out = tmp_path / "out"
    place = out / "grad-ascent-seed0"
    words = {"methods": ["grad-ascent"], "output": out, "redact": True, **SETS, **QUICK}
    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", failing)
        found = expunge.compare(model_folder, **words).trials[0]
    assert re.fullmatch(r"RuntimeError \(test_comparison.py, line \d+\)", found.error)
    said = (place / "error.txt").read_text()
    assert said.endswith("RuntimeError\n")
    assert "Street" not in said + caplog.text
    assert "raise" not in said
    record = read_record(place)
    write_record(record.model_copy(update={"seed": 5}), place)
    again = expunge.compare(model_folder, **words, resume=True)
    assert again.trials[0].status == "done"
    assert read_record(place).seed == 0
    assert "grad-ascent-seed0 starts from the beginning: --resume must continue with the same" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["ngdiff", "npoo"]}, "Did you mean npo?"),
        ({"methods": []}, "--methods must name at least one"),
        ({"methods": ["npo", "npo"]}, "npo stands there twice"),
        ({"seeds": []}, "--seeds must name at least one"),
        ({"seeds": [1, 1]}, "1 stands there twice"),
        ({"seed": 1}, "give --seeds"),
        ({"grid": {"learning_rat": [1.0]}}, "Did you mean learning_rate?"),
        ({"grid": {"learning_rate": [1e-5, 1e-5]}}, "stands there twice"),
        ({"grid": {"learning_rate": ["fast"]}}, "learning_rate must be a valid number"),
        ({"grid": {"max_steps": [3]}, "max_steps": 2}, "must not both name max_steps"),
        ({"npo:beta": 1.0}, "compared method before the colon"),
        ({"ngdiff:output": "x"}, "settings of the training"),
        ({"control": "x"}, "settings of the training"),
        ({"retain": None}, "ngdiff needs retain records|must name something that is measured"),
        ({"retain": ROWS[:2]}, "share no record"),
        ({"forget": None}, "needs forget records"),
        ({"benchmark": "tofuu"}, "BENCHMARK must be"),
        ({"forget_metric": "forget/leek"}, "Did you mean forget/leak?"),
        ({"utility_metric": "general/leak"}, "Splits are forget, retain, holdout"),
        ({"utility_metric": "leak:up"}, "lower or higher"),
        (
            {"methods": ["ngdiff", "npo"], "refresh_every": 5, "sharpness": 0.0},
            "npo-seed0 cannot be run: `refresh_every` must be 1",
        ),
        ({"methods": ["ties-merge"], "max_steps": 1}, "ties-merge-seed0 cannot be run: `max_steps` must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_before_anything_runs(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran"))
    words = {"methods": ["ngdiff"], "output": tmp_path / "out", **SETS, **settings}
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        expunge.compare("no/such-model", **words)
    assert not (tmp_path / "out").exists()


def test_the_model_and_the_folder_are_checked_too(model_folder, tmp_path):
    words = {"methods": ["ngdiff"], **SETS}
    with pytest.raises(UsageError, match="no-such-model"):
        expunge.compare(tmp_path / "no-such-model", output=tmp_path / "out", **words)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(UsageError, match="no record of a run"):
        expunge.compare(model_folder, output=tmp_path / "thesis", overwrite=True, **words)
    with pytest.raises(ValueError, match="must be a folder or a name"):
        expunge.compare(conftest.build_model(), output=tmp_path / "out", **words)


def call(*words: object) -> int:
    return terminal.guarded(
        lambda: cli.app([str(word) for word in words], exit_on_error=False, print_error=False)
    )


def test_the_command_line(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("expunge.runs.write_report", lambda *_: None)
    for name, rows in SETS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [word for name in SETS for word in (f"--{name}", tmp_path / f"{name}.jsonl")]
    words = ["compare", "records", "--model", model_folder, *sets, "--output", tmp_path / "out"]
    words += ["--methods", "kl-min, ngdiff", "--seeds", "4", "--set", "max_steps=1", "--template", "none"]
    words += ["--set", "bf16=false", "--grid", "kl-min:retain-weight=1,2", "--forget-metric", "nll"]
    assert call(*words) == 0
    printed = capsys.readouterr().out
    assert "kl-min (retain_weight 2)" in printed
    assert "hypervolume" in printed
    assert str(tmp_path / "out" / "report.html") in printed.replace("\n", "")
    assert call(*words, "--resume", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [trial["varied"] for trial in found["trials"]] == [{"retain_weight": 1}, {"retain_weight": 2}, {}]
    assert found["forget_axis"] == {"split": "forget", "metric": "nll", "better": "higher"}
    assert found["trials"][0]["seed"] == 4
    assert call("report", tmp_path / "out") == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert call(*words[:10], "--output", tmp_path / "new", "--methods", "ngdif") == 2
    assert "Did you mean ngdiff" in capsys.readouterr().err
    for wrong, message in (
        (["--seeds", "x"], "whole numbers"),
        (["--grid", "beta"], "--grid must be KEY=VALUE"),
        (["--set", "seed=3"], "--seeds"),
    ):
        assert call(*words[:10], "--output", tmp_path / "new", "--methods", "npo", *wrong) == 2
        assert message in capsys.readouterr().err
