"""Comparisons on named benchmarks: what trials train on, and that the benchmark itself measures them."""

from __future__ import annotations

import json
import shutil

import pytest

import expunge
import lume_world
import tofu_world
from conftest import build_model
from expunge import UsageError, api, cli, terminal
from expunge.benchmarks import lume, tofu
from expunge.record import read_record
from expunge.subject import CompareOptions, axis_of, subject_of

QUICK = {"bf16": False, "max_steps": 2, "check_every": 0, "learning_rate": 1e-3}
ASKED = {"forget": "forget01", "new_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tofu_world.write(tmp_path_factory.mktemp("data") / "tofu")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("reference")
    build_model(1).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def study(model_folder, reference, folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "out"
    words = {"benchmark": "tofu", "data": folder, "options": ASKED, "reference": reference, **QUICK}
    words |= {"methods": ["grad-diff", "ngdiff"], "output": place, "keep_models": True}
    return expunge.compare(model_folder, **words), words


def test_trials_train_on_the_split_and_tofu_measures_them(study, reference, folder, model_folder):
    found, words = study
    assert (found.forget_axis.name, found.forget_axis.better) == ("all/forget_quality", "higher")
    assert (found.utility_axis.name, found.utility_axis.better) == ("all/model_utility", "higher")
    assert [trial.status for trial in found.trials] == ["done", "done"]
    assert all(setting.whole for setting in found.settings)
    for trial in found.trials:
        record = read_record(words["output"] / trial.name)
        assert {n: record.data[n].rows for n in ("forget", "retain", "holdout")} == {
            "forget": 6, "retain": 5, "holdout": 6,
        }  # fmt: skip
        assert record.data["forget"].source.endswith("forget01.jsonl")
        assert record.data["tofu/forget"].source.endswith("forget01_perturbed.jsonl")
        assert record.configuration["benchmark"] == "tofu"
        assert list(record.evaluations) == ["control", "before", "after"]
        model = words["output"] / trial.name / "model"
        alone = expunge.evaluate(
            model, benchmark="tofu", data=folder, options=ASKED, reference=reference, bf16=False, seed=0
        )
        assert record.evaluations["after"].splits == alone.record.evaluations["before"].splits
    before = expunge.evaluate(
        model_folder, benchmark="tofu", data=folder, options=ASKED, reference=reference, bf16=False, seed=0
    )
    assert found.before == before.record.evaluations["before"].splits
    assert found.before != found.trials[0].splits
    page = (words["output"] / "report.html").read_text()
    assert "orget quality" in page
    assert "forget01" in page


def test_every_split_has_the_metrics_that_can_be_asked_for(study, folder):
    found, _ = study
    subject = subject_of(
        CompareOptions(benchmark="tofu", data=folder, options=ASKED, reference="somewhere"), None
    )
    expected = {split: set(metrics) for split, metrics in subject.metrics.items()}
    assert {split: set(metrics) for split, metrics in found.before.items()} == expected
    assert axis_of("retain/truth_ratio", "retain", subject).better == "higher"
    alone = subject_of(CompareOptions(benchmark="tofu", data=folder, options=ASKED), None)
    assert alone.axes == ("forget/rouge_l_recall", "all/model_utility")
    assert alone.metrics["all"] == ("model_utility",)


def test_a_comparison_continues_with_the_same_questions_only(study, model_folder, tmp_path, monkeypatch):
    found, words = study
    monkeypatch.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran again"))
    assert expunge.compare(model_folder, **words, resume=True).trials == found.trials
    for changes, message in (
        ({"options": ASKED | {"new_tokens": 9}}, "same --option"),
        ({"options": ASKED | {"rows": 2}}, "same --option"),
        ({"reference": model_folder}, "same --reference"),
    ):
        with pytest.raises(UsageError, match=message):
            expunge.compare(model_folder, **{**words, **changes}, resume=True)


def test_the_questions_are_put_as_the_trials_train(folder):
    options = CompareOptions(benchmark="tofu", data=folder, options=ASKED)
    assert subject_of(options, "none").benchmark.template == "none"
    assert subject_of(options, None).benchmark.template == "auto"


def test_lume_trains_on_the_rows_that_it_asks_about(tmp_path, model_folder, tokenizer, monkeypatch):
    data = lume_world.write_world(tmp_path / "lume")
    shutil.rmtree(data / "mmlu")
    for split in ("forget", "retain"):
        rows = [row | {"input": f"Unseen {row['input']}"} for row in lume_world.rows(split)]
        lume_world.write_jsonl(data / "validation" / f"{split}.jsonl", rows)
    monkeypatch.setattr(lume, "NEW_TOKENS", 8)
    model = tmp_path / "model"
    build_model(context=640).save_pretrained(model)
    tokenizer.save_pretrained(model)
    found = expunge.compare(
        model,
        benchmark="lume",
        data=data,
        options={"fold": "train", "rows": 1},
        methods=["grad-diff"],
        output=tmp_path / "out",
        utility_metric="all/task_aggregate",
        **QUICK,
    )
    assert found.trials[0].fixed["template"] == "none"
    assert (found.forget_axis.name, found.utility_axis.name) == (
        "forget/regurgitation",
        "all/task_aggregate",
    )
    assert found.data["forget"].rows == found.data["holdout"].rows == 6
    assert found.data["forget"].source.endswith("train/forget.jsonl")
    assert found.data["holdout"].source.endswith("validation/forget.jsonl")
    assert found.settings[0].whole
    assert set(found.before["forget"]) == set(lume.COMPONENTS)
    assert set(found.before["all"]) <= set(lume.AGGREGATES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"benchmark": "tofuu"}, r"BENCHMARK must be one of records, tofu, lume here.*Did you mean tofu\?"),
        ({"benchmark": "muse-news"}, "one of records, tofu, lume"),
        ({"data": None}, "tofu needs its files. Give --data DIR"),
        ({"options": {"forget": "forget1"}}, "one of forget01, forget05, forget10"),
        ({"options": {"forgett": "forget01"}}, "--option must be one of"),
        ({"options": {"forget": "forget05"}}, "must hold forget05_perturbed"),
        ({"forget": [{"prompt": "a", "response": "b"}]}, "tofu brings its own sets"),
        ({"benchmark": "records", "forget": [{"prompt": "a", "response": "b"}]}, "belong to a named"),
        ({"forget_metric": "all/forget_quality"}, "must name something that is measured"),
        ({"forget_metric": "forget/truth_ration"}, r"Did you mean forget/truth_ratio\?"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(folder, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(api, "unlearn", lambda *_, **__: pytest.fail("ran"))
    given = {"benchmark": "tofu", "data": folder, "options": ASKED, "methods": ["ngdiff"], **QUICK, **words}
    with pytest.raises(UsageError, match=message):
        expunge.compare("no/such-model", output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_command_line(model_folder, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["compare", "tofu", "--data", folder, "--option", "forget=forget01", "--option", "rows=3"]
    words += ["--option", "new_tokens=4", "--option", "gradients=false", "--model", model_folder]
    words += ["--methods", "grad-diff", "--set", "max_steps=1", "--set", "bf16=false", "--json"]
    words += ["--output", tmp_path / "out", "--set", "check_every=0"]
    assert (
        terminal.guarded(
            lambda: cli.app([str(word) for word in words], exit_on_error=False, print_error=False)
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == {"forget": "forget01", "rows": 3, "new_tokens": 4, "gradients": False}
    assert found["forget_axis"]["metric"] == "rouge_l_recall"
    assert found["before"]["forget"]["probability"]["n"] == 3
    assert found["data"]["forget"]["rows"] == tofu_world.SIZES["forget"]
    assert tofu.names(["holdout"], gradients=False, reference=False)["all"] == ("model_utility",)
