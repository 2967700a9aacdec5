"""Others' logs of TOFU: the published oracle, what is refused, round trips through the official formats."""

from __future__ import annotations

import gzip
import json
import math
import re
from dataclasses import replace

import pytest

from conftest import absent
from expunge import terminal
from expunge.benchmarks.tofu import from_tofu_logs, metrics, read_log, write_logs
from expunge.benchmarks.tofu.questions import OPTIONS, Loss, Question, Scores, log_ratio
from expunge.cli import app
from expunge.errors import UsageError
from expunge.metrics import rouge_l_recall
from expunge.record import read_record

RUNS = ("full", "retain90", "retain95", "retain99")
OURS = {"prob": "probability", "rougeL": "rouge_l_recall", "truth_ratio": "truth_ratio"}


@pytest.fixture(scope="module")
def logs(shared_data):
    folder = shared_data / "tofu_reference_logs"
    if not folder.is_dir():
        absent("the authors' evaluation logs are not there", "EXPUNGE_REQUIRE_DATA")
    return folder


@pytest.fixture(scope="module")
def oracle(logs):
    return json.loads((logs / "oracle.json").read_text())


def file(logs, run):
    return logs / f"phi_{run}_wd0.01.eval_log_aggregated.json.gz"


@pytest.fixture(scope="module")
def read(logs):
    return {run: read_log(file(logs, run)) for run in RUNS}


# --- the published oracle


@pytest.mark.parametrize("run", RUNS)
def test_every_component_and_utility_of_the_authors(logs, oracle, run):
    expected = dict(oracle["model_utility"][f"phi/{run}/wd0.01"])
    found = from_tofu_logs(file(logs, run)).splits
    assert found["all"]["model_utility"].value == pytest.approx(expected.pop("model_utility"), abs=1e-9)
    for name, value in expected.items():
        kind, split = re.fullmatch("(prob|rougeL|truth_ratio)_(.+)", name).groups()
        metric = "normalised_probability" if kind == "prob" and split in OPTIONS else OURS[kind]
        assert found[split][metric].value == pytest.approx(value, abs=1e-9), name
    assert len(expected) == 12


@pytest.mark.parametrize("run", RUNS)
def test_the_other_mean_over_wrong_answers(read, oracle, run):
    expected = oracle["model_utility_utils_py"][f"phi/{run}/wd0.01"]
    nine = []
    for name, questions in read[run].questions.items():
        quantities = metrics.per_question(name, mean="arithmetic")
        means = {
            metric: math.fsum(metrics.column(questions, quantities[metric])) / len(questions)
            for metric in metrics.components(name)
        }
        assert means["truth_ratio"] == pytest.approx(expected[f"truth_ratio_{name}"], abs=1e-9)
        nine += means.values() if name != "forget" else []
    assert metrics.model_utility(nine) == pytest.approx(expected["model_utility"], abs=1e-9)


@pytest.mark.parametrize("run", RUNS[1:])
def test_forget_quality_of_the_published_runs(read, oracle, run):
    expected = oracle["forget_quality"][f"phi/wd0.01/full_vs_{run}"]
    ratios = {name: metrics.column(read[name].questions["forget"], log_ratio) for name in ("full", run)}
    assert {len(ratios["full"]): "full", len(ratios[run]): "retain"}.keys() == {
        expected["n_full"],
        expected["n_retain"],
    }
    distance, p_value = metrics.forget_quality(ratios["full"], ratios[run])
    assert distance == pytest.approx(expected["statistic"], abs=1e-9)
    assert p_value == pytest.approx(expected["pvalue"], rel=1e-9)
    assert math.log10(p_value) == pytest.approx(expected["log10_p"], abs=1e-9)
    reciprocal = metrics.forget_quality([-r for r in ratios["full"]], [-r for r in ratios[run]])[1]
    assert reciprocal == pytest.approx(expected["pvalue_on_reciprocal"], rel=1e-9)
    if "shared_only" in expected:
        places = {q.prompt: i for i, q in enumerate(read["full"].questions["forget"])}
        pairs = [
            (places[q.prompt], i) for i, q in enumerate(read[run].questions["forget"]) if q.prompt in places
        ]
        assert len(pairs) == expected["shared_questions"] == expected["shared_only"]["n"]
        distance, p_value = metrics.forget_quality(
            [ratios["full"][i] for i, _ in pairs], [ratios[run][j] for _, j in pairs]
        )
        assert distance == pytest.approx(expected["shared_only"]["statistic"], abs=1e-9)
        assert p_value == pytest.approx(expected["shared_only"]["pvalue"], rel=1e-9)


def test_forget_quality_from_two_logs(logs, oracle):
    expected = oracle["forget_quality"]["phi/wd0.01/full_vs_retain90"]
    found = from_tofu_logs(file(logs, "full"), file(logs, "retain90"))
    quality, ks = found.splits["all"]["forget_quality"], found.splits["all"]["forget_ks"]
    assert quality.value == pytest.approx(expected["pvalue"], rel=1e-9)
    assert ks.value == pytest.approx(expected["statistic"], abs=1e-9)
    assert quality.low < quality.value < quality.high
    assert ks.low < ks.value < ks.high
    itself = from_tofu_logs(file(logs, "retain90"), file(logs, "retain90")).splits["all"]
    assert itself["forget_quality"].value == oracle["forget_quality"]["phi/retain90_vs_itself"]["pvalue"]


@pytest.mark.parametrize(("run", "rows"), [("retain95", 200), ("retain99", 40)])
def test_a_retain_log_of_other_questions_is_refused(logs, run, rows):
    with pytest.raises(UsageError, match=f"phi_full.* has 300 forget rows, .*phi_{run}.* has {rows}"):
        from_tofu_logs(file(logs, "full"), file(logs, run))


def test_all_logged_rouge_recalls(logs):
    lines = gzip.decompress((logs / "rouge_cases.jsonl.gz").read_bytes()).decode().splitlines()
    cases = [json.loads(line) for line in lines]
    assert len(cases) == 400
    for case in cases:
        assert rouge_l_recall(case["generated"], case["reference"]) == case["rougeL_recall"]


# --- logs of our own


def scores(shift=0.0):
    """Results on a few questions, as a model's tables would give them."""

    def question(name, i):
        answer = Loss(0.3 + 0.1 * i + shift, 7 + i)
        options = name in ("real_authors", "world_facts")
        return Question(
            prompt=f"Where is {name} {i}?",
            response=f"{name} is at {i} Elm",
            answer=answer,
            paraphrase=answer if options else Loss(0.9 + 0.2 * i - shift, 8),
            perturbed=tuple(Loss(1.0 + 0.3 * k + 0.05 * i, 6 + k) for k in range(3)),
            generation=f"{name} is at {i + i % 2} Elm",
            rouge_l=rouge_l_recall(f"{name} is at {i + i % 2} Elm", f"{name} is at {i} Elm"),
        )

    sides = [-0.1 * i - shift for i in range(6)], [-0.35 - 0.1 * i for i in range(6)]
    return Scores(
        questions={
            name: [question(name, i) for i in range(n)]
            for name, n in (("forget", 6), ("retain", 5), ("real_authors", 4), ("world_facts", 3))
        },
        extraction_strength=[0.5, 0.25, 0.0, 1.0, 0.125, 0.75],
        exact_memorization=[0.9, 0.8, 0.7, 1.0, 0.2, 0.9],
        attacks=dict.fromkeys(
            ("loss", "zlib", "gradient_norm", "min_k", "min_k_plus_plus", "reference"), sides
        ),
    )


def without_tokens(question):
    def bare(loss):
        return Loss(loss.nll)

    return replace(
        question,
        answer=bare(question.answer),
        paraphrase=bare(question.paraphrase),
        perturbed=tuple(map(bare, question.perturbed)),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model, reference = scores(), scores(0.15)
    return {
        name: write_logs(of, other, tmp_path_factory.mktemp(name))
        for name, of, other in (("model", model, reference), ("reference", reference, None))
    }


def test_the_authors_format_comes_back_as_it_was(written):
    assert read_log(written["model"][0]).questions == scores().questions


def test_open_unlearnings_format_comes_back_as_it_was(written):
    expected = scores()
    found = read_log(written["model"][1])
    bare = {name: [without_tokens(q) for q in questions] for name, questions in expected.questions.items()}
    assert found == replace(expected, questions=bare)


@pytest.mark.parametrize("kind", [0, 1])
def test_metrics_from_exported_logs_are_those_of_the_model(written, kind):
    expected = metrics.measured(scores(), scores(0.15), seed=3)
    found = from_tofu_logs(written["model"][kind], written["reference"][kind], seed=3)
    for name, split in found.splits.items():
        for metric, value in split.items():
            assert value == expected.splits[name][metric], (name, metric)
    missing = names(expected) - names(found)
    lost = {m for m in names(expected) if m.startswith(("membership", "extraction", "exact", "privleak"))}
    assert missing == (lost if kind == 0 else set())
    assert found.answers == expected.answers


def names(measured):
    return {metric for split in measured.splits.values() for metric in split}


def test_exports_carry_the_official_fields(written):
    log, evaluation, summary = (json.loads(path.read_text()) for path in written["model"])
    assert [path.name for path in written["model"]] == [
        "eval_log_aggregated.json",
        "TOFU_EVAL.json",
        "TOFU_SUMMARY.json",
    ]
    task = log["eval_real_author_wo_options.json"]
    assert set(task) == {
        *("avg_gt_loss", "gt_loss", "num_token_gt", "generated_text", "rouge1_recall", "rougeL_recall"),
        *("average_perturb_loss", "avg_paraphrased_loss", "truth_ratio", "paraphrased_loss", "perturb_loss"),
        *("num_token_paraphrased", "num_token_perturb", "normalized_gt_loss"),
    }
    assert task["gt_loss"]["2"] == pytest.approx(task["avg_gt_loss"]["2"] * task["num_token_gt"]["2"])
    question = scores().questions["real_authors"][2]
    assert task["truth_ratio"]["2"] == pytest.approx(
        math.exp(question.paraphrase.nll - sum(loss.nll for loss in question.perturbed) / 3)
    )
    assert math.exp(-task["normalized_gt_loss"]["2"]) == pytest.approx(
        math.exp(-0.5) / (math.exp(-0.5) + sum(math.exp(-loss.nll) for loss in question.perturbed))
    )
    assert summary == {metric: entry["agg_value"] for metric, entry in evaluation.items()}
    assert {"forget_quality", "model_utility", "privleak", "forget_truth_ratio", "retain_Truth_Ratio"} <= set(
        summary
    )
    assert {"ra_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "mia_min_k_plus_plus", "mia_gradnorm"} <= set(summary)
    # OpenUnlearning's attack scores are losses: here the members' are lower, and its area counts them so.
    attack = evaluation["mia_loss"]
    assert (
        attack["forget"]["value_by_index"]["0"]["score"] < attack["holdout"]["value_by_index"]["0"]["score"]
    )
    assert attack["agg_value"] == attack["auc"] > 0.5


def test_rows_are_matched_by_index_not_by_place(written, tmp_path):
    log = json.loads(written["model"][0].read_text())
    for columns in log.values():
        for field in ("avg_gt_loss", "rougeL_recall"):
            columns[field] = dict(reversed(columns[field].items()))
    shuffled = tmp_path / "eval_log_aggregated.json"
    shuffled.write_text(json.dumps(log))
    assert read_log(shuffled).questions == scores().questions


def edited(path, folder, change):
    log = json.loads(path.read_text())
    change(log)
    copy = folder / "edited.json"
    copy.write_text(json.dumps(log))
    return copy


def test_a_reference_with_one_other_question_is_refused(written, tmp_path):
    def change(log):
        log["eval_log_forget.json"]["generated_text"]["3"][0] = "Where is Ada?"

    other = edited(written["reference"][0], tmp_path, change)
    with pytest.raises(UsageError, match=r"on the same questions. Forget row \d of"):
        from_tofu_logs(written["model"][0], other)


def test_the_same_questions_under_another_template_are_the_same(written, tmp_path):
    def change(log):
        for texts in log["eval_log_forget.json"]["generated_text"].values():
            texts[0] = f"[INST] {texts[0]} [/INST]"

    other = edited(written["reference"][0], tmp_path, change)
    assert "forget_quality" in from_tofu_logs(written["model"][0], other).splits["all"]


def test_logs_without_texts_are_compared_by_rows_and_it_is_said(written, tmp_path):
    def change(log):
        for columns in log.values():
            del columns["generated_text"]

    other = edited(written["reference"][0], tmp_path, change)
    found = from_tofu_logs(written["model"][0], other)
    assert "forget_quality" in found.splits["all"]
    assert any("only the number of forget rows" in note for note in found.notes)


def test_a_log_without_a_component_has_no_utility_and_says_so(written, tmp_path):
    def change(log):
        del log["eval_log.json"]["rougeL_recall"]

    found = from_tofu_logs(edited(written["model"][0], tmp_path, change))
    assert "all" not in found.splits
    assert "rouge_l_recall" not in found.splits["retain"]
    assert any("model utility: one of its nine" in note for note in found.notes)


def test_a_reference_attacked_on_other_records_is_refused(written, tmp_path):
    def change(log):
        del log["mia_min_k"]["holdout"]["value_by_index"]["5"]

    other = edited(written["reference"][1], tmp_path, change)
    with pytest.raises(UsageError, match=r"same forget and holdout records.* has 6 and 6, .* has 6 and 5"):
        from_tofu_logs(written["model"][1], other)


def drop_row(log):
    del log["eval_log.json"]["rougeL_recall"]["4"]


def drop_middle(log):
    for columns in log["eval_log.json"].values():
        columns.pop("2")


def empty(log):
    log["eval_log.json"] = []


def spoil(log):
    log["eval_log.json"]["avg_gt_loss"]["1"] = "high"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_row, "all results on retain must be of the same questions; found .*4 of rougeL_recall"),
        (drop_middle, "must have rows 0 to 3; some are missing"),
        (empty, "'eval_log.json' must be an object; found a list"),
        (spoil, "'avg_gt_loss' must map indices to results .*high"),
    ],
)
def test_broken_logs_are_refused(written, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        read_log(edited(written["model"][0], tmp_path, change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"forget_verbmem_ROUGE": {"agg_value": 1}}', "must be a TOFU log; it seems to be of MUSE"),
        ('{"accuracy": {}}', "something else .it holds accuracy."),
        ("[1]", "must hold a JSON object; found a list"),
        ("{", "must be JSON"),
    ],
)
def test_files_that_are_no_tofu_logs_are_refused(tmp_path, content, message):
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        from_tofu_logs(path)


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.json must be a readable log; No such file"):
        from_tofu_logs(tmp_path / "nowhere.json")
    cut = tmp_path / "log.json.gz"
    cut.write_bytes(gzip.compress(b"{}" * 100)[:-9])
    with pytest.raises(UsageError, match=r"log.json.gz must be JSON"):
        from_tofu_logs(cut)


def test_a_collapsed_model_overflows_nothing(tmp_path):
    broken = scores()
    forget = [replace(q, paraphrase=Loss(2000.0, 8)) for q in broken.questions["forget"]]
    broken = replace(broken, questions=broken.questions | {"forget": forget})
    found = metrics.measured(broken, scores(), seed=0)
    assert found.splits["forget"]["truth_ratio"].value == pytest.approx(0, abs=1e-12)
    assert found.splits["all"]["forget_ks"].value == 1
    log = json.loads(write_logs(broken, None, tmp_path)[0].read_text())
    assert log["eval_log_forget.json"]["truth_ratio"]["0"] == math.inf


def test_a_model_that_gives_no_number_has_no_forget_quality_but_nan():
    broken = scores()
    forget = [replace(q, paraphrase=Loss(math.nan, 8)) for q in broken.questions["forget"]]
    found = metrics.measured(
        replace(broken, questions=broken.questions | {"forget": forget}), scores(), seed=0
    )
    assert math.isnan(found.splits["all"]["forget_quality"].value)


def test_the_command_reads_logs_beside_a_reference(written, tmp_path, capsys):
    def call(*words):
        line = ["evaluate", *map(str, words)]
        return terminal.guarded(lambda: app(line, exit_on_error=False, print_error=False))

    for log, reference in zip(written["model"][:2], written["reference"][:2], strict=True):
        out = tmp_path / log.stem
        assert call("tofu", "--logs", log, "--reference-logs", reference, "--output", out, "--json") == 0
        assert json.loads(capsys.readouterr().out)["kind"] == "evaluate"
        record = read_record(out)
        expected = from_tofu_logs(log, reference, 0).splits  # some bounds are NaN, and so never equal
        assert str(record.evaluations["before"].splits) == str(expected)
        assert "forget_quality" in record.evaluations["before"].splits["all"]
        assert (out / "report.html").is_file()
    log = written["model"][0]
    assert call("tofu", "--logs", log, "--output", tmp_path / "redacted", "--redact") == 0
    record, asked = read_record(tmp_path / "redacted"), read_log(log).questions["forget"][0]
    assert any("Redacted" in note for note in record.notes)
    texts = ((tmp_path / "redacted" / name).read_text() for name in ("record.json", "report.html"))
    assert not any(asked.prompt in text or asked.generation in text for text in texts)
    capsys.readouterr()
    for words, message in (
        (["tofu", "--logs", log, "--model", "m"], "--model says how a model is measured"),
        (["tofu", "--logs", log, "--prompt-field", "q"], "--prompt-field says how"),
        (["tofu", "--logs", log, "--cache", tmp_path / "c"], "--cache says how"),
        (["lume", "--logs", log], "--logs belongs to tofu"),
        (["tofu", "--reference-logs", log], "Give the one that fits"),
        (["tofu", "--logs", log, "--data", tmp_path], "go with --generations"),
        (["tofu", "--logs", tmp_path / "none.json"], "none.json"),
    ):
        assert call(*words) == 2
        assert message in capsys.readouterr().err
