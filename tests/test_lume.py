"""LUME against a naive scorer, its files against themselves and pandas, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import naive_lume
from expunge import UsageError, terminal
from expunge.benchmarks import lume, lume_scores
from expunge.benchmarks.benchmark import Benchmark, Measured
from expunge.benchmarks.leaderboards import published
from expunge.benchmarks.lume_files import official_results, read_generations, write_generations
from expunge.benchmarks.lume_scores import Evidence, Item, clean, measured
from expunge.cli import app
from expunge.record import read_record
from expunge.tables import Tables, examine
from lume_world import documents, half_remembering, questions, rows, write_jsonl, write_world

SPLITS = {split: rows(split) for split in ("forget", "retain")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("lume"))


@pytest.fixture(scope="module")
def taught(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return half_remembering(tokenizer)


@pytest.fixture(scope="module")
def benchmark_(world: Path) -> lume.Lume:
    return lume.load(world, shots=2)


@pytest.fixture(scope="module")
def tables(taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, benchmark_: lume.Lume) -> Tables:
    return examine(taught, tokenizer, benchmark_.parts(tokenizer, 640), batch_tokens=1024)


@pytest.fixture(scope="module")
def found(benchmark_: lume.Lume, tables: Tables) -> Measured:
    return benchmark_.measure(tables, None, seed=0)


@pytest.fixture(scope="module")
def files(benchmark_: lume.Lume, tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_generations(benchmark_, tables, folder)
    return folder


# --- against the definition


def test_every_component_agrees_with_the_naive_scorer(
    found: Measured, taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    means = naive_lume.components(taught, tokenizer, SPLITS)
    assert len(means) == 12
    assert sum(0 < mean < 1 for mean in means.values()) >= 8, "the model must half remember"
    for key, mean in means.items():
        split, ending, task = key.split("/")
        name = f"{lume_scores.KINDS[ending]}_{task.lower()}"
        assert found.splits[split][name].value == pytest.approx(mean, abs=1e-12), key
    every = {name: metric.value for name, metric in found.splits["all"].items()}
    losses = {
        kind: [naive_lume.loss(taught, tokenizer(d["document"]).input_ids, 1) for d in documents(kind)]
        for kind in ("member", "nonmember")
    }
    auc = naive_lume.membership_auc(losses["member"], losses["nonmember"])
    accuracy = naive_lume.mmlu(taught, tokenizer, questions(8), questions(4, "dev"))
    aggregate = naive_lume.task_aggregate(means)
    assert 0 < aggregate < 1
    assert every["task_aggregate"] == pytest.approx(aggregate, abs=1e-12)
    assert every["membership_auc"] == pytest.approx(auc, abs=1e-12)
    assert every["membership_score"] == pytest.approx(1 - 2 * abs(auc - 0.5), abs=1e-12)
    assert every["mmlu"] == accuracy
    assert every["final_score"] == pytest.approx(
        (aggregate + 1 - 2 * abs(auc - 0.5) + accuracy) / 3, abs=1e-12
    )


def test_every_text_is_what_the_row_gives_alone(
    tables: Tables, taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    for split, found in SPLITS.items():
        batched = [generation.text for generation in tables[split].generations]
        assert batched == [naive_lume.generate(taught, tokenizer, row["input"]).strip() for row in found]


def test_the_command_measures_a_folder_and_leaves_a_page(
    taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: Path, found: Measured, tmp_path: Path
) -> None:
    for part in (taught, tokenizer):
        part.save_pretrained(tmp_path / "model")
    line = ["evaluate", "lume", "--model", tmp_path / "model", "--data", world, "--option", "shots=2"]
    line += ["--output", tmp_path / "out", "--quiet"]
    assert terminal.guarded(lambda: app([*map(str, line)], exit_on_error=False, print_error=False)) == 0
    record = read_record(tmp_path / "out")
    assert record.evaluations["before"].splits["all"].keys() == found.splits["all"].keys()
    assert "final score" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8").lower()


def test_losses_are_those_of_the_official_tokenization(
    benchmark_: lume.Lume, tables: Tables, taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    for row, score in list(zip(rows("forget"), tables["forget_nll"].scores, strict=True))[:6]:
        head = len(tokenizer(row["input"]).input_ids)
        whole = tokenizer(row["input"] + row["output"]).input_ids
        assert score.nll == pytest.approx(naive_lume.loss(taught, whole, head), abs=1e-5)


def test_an_answer_without_end_has_256_tokens(tables: Tables) -> None:
    lengths = [len(g.tokens) for split in SPLITS for g in tables[split].generations]
    assert max(lengths) <= lume.NEW_TOKENS
    known = [len(g.tokens) for g in tables["retain"].generations[:-1]]
    assert max(known) < 64, "what was taught ends by itself"


def test_the_measured_thing_is_whole(found: Measured, benchmark_: lume.Lume) -> None:
    assert isinstance(benchmark_, Benchmark)
    for split, metrics in found.splits.items():
        for name, metric in metrics.items():
            assert metric.low <= metric.value <= metric.high, (split, name)
            assert name in lume.METRICS
    assert found.splits["all"]["task_aggregate"].n == 28
    assert len(found.answers["forget"]) == 14
    assert {a.leaked for a in found.answers["forget"]} == {True, False, None}
    assert any("0.40" in note and "0.165" in note for note in found.notes)
    assert any("2-shot" in note and "letter" in note for note in found.notes)
    assert set(benchmark_.sets) == {"forget", "retain", "member", "nonmember", "mmlu"}


# --- the scores alone


def evidence(generate: Any, **other: Any) -> Evidence:
    items = {
        split: [Item(r["id"], r["task"], r["input"], r["output"], generate(split, r)) for r in found]
        for split, found in SPLITS.items()
    }
    return Evidence(items, **other)


def test_the_anchors() -> None:
    losses = list(np.random.default_rng(0).normal(size=200))
    collapsed = measured(
        evidence(lambda s, r: "", members=losses[:100], nonmembers=losses[100:], mmlu=0.27), 0, 50
    ).splits["all"]
    assert collapsed["task_aggregate"].value == 0
    assert collapsed["final_score"].value == pytest.approx(0.40, abs=0.03)
    untouched = measured(
        evidence(lambda s, r: r["output"], members=[0.0] * 100, nonmembers=[1.0] * 100, mmlu=0.495), 0, 50
    ).splits["all"]
    assert untouched["task_aggregate"].value == 0
    assert untouched["membership_auc"].value == 1
    assert untouched["final_score"].value == pytest.approx(0.165)


def test_a_perfect_model_scores_one() -> None:
    perfect = evidence(
        lambda s, r: r["output"] if s == "retain" else "", members=[1.0, 2.0], nonmembers=[1.0, 2.0]
    )
    every = measured(perfect, 0, 50).splits["all"]
    assert every["task_aggregate"].value == 1
    assert every["membership_score"].value == 1


@pytest.mark.parametrize("missing", ["mmlu", "members"])
def test_the_final_score_is_absent_where_a_part_is(missing: str) -> None:
    parts: dict[str, Any] = {"members": [1.0], "nonmembers": [2.0], "mmlu": 0.5}
    del parts[missing]
    result = measured(evidence(lambda s, r: "x", **parts), 0, 50)
    assert "final_score" not in result.splits["all"]
    assert any(note.startswith("Final score: absent") for note in result.notes)


def test_the_task_aggregate_is_absent_without_all_twelve() -> None:
    whole = evidence(lambda s, r: "x")
    some = {split: [i for i in items if i.task != "Task3"] for split, items in whole.items.items()}
    result = measured(Evidence(some), 0, 50)
    assert "task_aggregate" not in result.splits["all"]
    assert "regurgitation_task3" not in result.splits["forget"]
    assert any("forget/Task3/sc" in note for note in result.notes)


def test_low_mmlu_is_named() -> None:
    low = measured(evidence(lambda s, r: "x", members=[1.0], nonmembers=[2.0], mmlu=0.3), 0, 50)
    assert any("0.371" in note for note in low.notes)
    assert math.isnan(low.splits["all"]["mmlu"].low), "no interval is known"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("No . It 's a , b ?", "No. It's a, b?"),
        ("she said ' yes ' here", "she said'yes'here"),
        ("plain", "plain"),
    ],
)
def test_spaces_go_as_in_the_official_script(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_response_without_words_counts_as_not_recalled() -> None:
    assert Item("asc1", "Task1", "p", "雪", "雪").value == 0.0
    assert Item("aqa0", "Task1", "p", " Ja ", "JA\n").value == 1.0


# --- files of the official script


def test_files_round_trip(found: Measured, benchmark_: lume.Lume, files: Path) -> None:
    assert sorted(path.relative_to(files).as_posix() for path in files.rglob("*.*")) == [
        "evaluation_results.jsonl",
        "forget_0.csv",
        "mia_results/member_0.csv",
        "mia_results/nonmember_0.csv",
        "retain_0.csv",
    ]
    back = read_generations(files, benchmark_)
    for split in ("forget", "retain"):
        assert back.splits[split] == found.splits[split]
        assert [a.generation for a in back.answers[split]] == [a.generation for a in found.answers[split]]
    for name, metric in found.splits["all"].items():
        assert back.splits["all"][name].value == pytest.approx(metric.value, abs=1e-12), name


def test_the_files_give_the_official_numbers(files: Path) -> None:
    """Read as the official script reads them: pandas, rows by the end of their id, means by task."""
    results = json.loads((files / "evaluation_results.jsonl").read_text())
    for split, found in SPLITS.items():
        frame = pandas.read_csv(files / f"{split}_0.csv")
        assert list(frame.columns) == ["id", "task", "input", "expected_output", "model_output", "nll"]
        assert list(frame["input"]) == [row["input"] for row in found]
        assert frame["nll"].dtype == float
        frame["score"] = [
            naive_lume.row_score({"id": i, "output": str(o)}, str(g))
            for i, o, g in zip(frame["id"], frame["expected_output"], frame["model_output"], strict=True)
        ]
        frame["kind"] = [i[:-1][-2:] for i in frame["id"]]
        for (task, kind), score in frame.groupby(["task", "kind"])["score"].mean().items():
            name = {"sc": "regurgitation-score", "qa": "knowledge-score"}[kind]
            assert results[f"{split}-set"][task][name] == pytest.approx(score, abs=1e-12)
    assert len(results["aggregated-terms"]) == 12
    assert results["mia_final_score"] == pytest.approx(1 - abs(results["mia_loss_acc"] - 0.5) * 2)
    parts = [results[k] for k in ("harmonic-mean-task-aggregate", "mmlu_average", "mia_final_score")]
    assert results["aggregate-score"] == pytest.approx(sum(parts) / 3)


def test_awkward_text_survives_the_files(tmp_path: Path) -> None:
    """Quotes, commas, line ends of all kinds, nothing at all."""
    awkward = iter(['a "b", c', "line\nline", "\r\n\r", "", "tab\t'", "名前"] * 5)
    written = evidence(lambda s, r: next(awkward))
    for split, items in written.items.items():
        found = [
            {"id": i.id, "task": i.task, "input": i.prompt, "expected_output": i.response,
             "model_output": i.generation, "nll": 1.5} for i in items
        ]  # fmt: skip
        frame = pandas.DataFrame(found)
        frame.iloc[:6].to_csv(tmp_path / f"{split}_0.csv", index=False)
        write_jsonl(tmp_path / f"{split}_1.jsonl", found[6:])
    back = read_generations(tmp_path)
    for split, items in written.items.items():
        assert [a.generation for a in back.answers[split]] == [i.generation for i in items]
        assert {a.nll for a in back.answers[split]} == {1.5}


def test_results_without_a_final_score_say_minus_one() -> None:
    assert official_results(measured(evidence(lambda s, r: "x"), 0, 50))["aggregate-score"] == -1


def test_rows_that_a_script_of_several_processes_repeats_are_named(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    lines = (tmp_path / "retain_0.csv").read_text().splitlines()
    (tmp_path / "retain_1.csv").write_text("\n".join([lines[0], lines[-1]]) + "\n")
    result = read_generations(tmp_path)  # the data need not be at hand
    assert result.splits["retain"]["knowledge"].n == 9
    assert any(note.startswith("1 retain rows stand twice") for note in result.notes)


def edited(files: Path, folder: Path, name: str, old: str, new: str) -> Path:
    shutil.copytree(files, folder, dirs_exist_ok=True)
    text = (files / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "forget_0.csv",
            "forget-2sc1",
            "other-2sc1",
            "must be the 14 rows of .* other-2sc1 is not among them",
        ),
        ("forget_0.csv", "F2 of Corran", "Someone else", "forget-2sc1 must have input and output"),
        ("forget_0.csv", "forget-2sc1", "forget-2xx1", "line 6: a row must have an id that ends in sc or qa"),
        ("forget_0.csv", '"model_output"', '"said"', "line 2: a row must have .* model_output is missing"),
        ("mia_results/member_0.csv", "member-1", "member-9", "must have the 6 member documents"),
        (
            "evaluation_results.jsonl",
            '"mmlu_average": ',
            '"mmlu_average": "high", "x": ',
            "must be one JSON object",
        ),
    ],
)
def test_files_of_something_else_are_refused(
    benchmark_: lume.Lume, files: Path, tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_generations(edited(files, tmp_path, name, old, new), benchmark_)


def test_files_with_rows_missing_are_refused(benchmark_: lume.Lume, files: Path, tmp_path: Path) -> None:
    last = (files / "forget_0.csv").read_text().splitlines()[-1]
    edited(files, tmp_path, "forget_0.csv", last + "\n", "")
    with pytest.raises(UsageError, match=r"14 rows of .*it has 13, and forget-5qa0 is missing"):
        read_generations(tmp_path, benchmark_)


def test_a_bad_loss_is_refused(benchmark_: lume.Lume, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    write_jsonl(tmp_path / "mia_results" / "member_1.jsonl", [{"id": "member-0", "nll": "low"}])
    with pytest.raises(UsageError, match="nll must be a number"):
        read_generations(tmp_path, benchmark_)


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_no_files_are_named(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UsageError, match=r"there is no folder|must hold forget_0\.csv"):
        read_generations(tmp_path / folder)


# --- reading the data


def test_folds_layouts_and_samples(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    for split, found in SPLITS.items():
        frame = pandas.DataFrame(found)
        frame.to_parquet(hub / "data" / f"{split}_validation-00000-of-00001.parquet")
        frame.iloc[:8].to_parquet(hub / "data" / f"{split}_train-00000-of-00001.parquet")
    for kind in ("member", "nonmember"):
        write_jsonl(hub / "mia_data" / "validation" / f"{kind}.jsonl", documents(kind))
    whole = lume.load(hub)
    assert [r.response for r in whole.rows["forget"]] == [r["output"] for r in SPLITS["forget"]]
    assert len(whole.documents["member"]) == 6
    assert whole.mmlu is None
    train = lume.load(hub, fold="train")
    assert len(train.rows["retain"]) == 8
    assert not train.documents, "documents of another fold are not taken"
    drawn = lume.load(hub, rows="1", seed=3)
    assert [len(records) for records in drawn.rows.values()] == [6, 6]
    assert {(r.metadata["task"], r.metadata["id"][:-1][-2:]) for r in drawn.rows["forget"]} == {
        (task, kind) for task in lume_scores.TASKS for kind in lume_scores.KINDS
    }
    assert "at most 1 rows" in drawn.notes[0]


def test_fold_all_reads_a_folder_of_two_files(tmp_path: Path) -> None:
    for split, found in SPLITS.items():
        write_jsonl(tmp_path / f"{split}.jsonl", found)
    assert len(lume.load(tmp_path, fold="all").rows["forget"]) == 14
    with pytest.raises(UsageError, match="choose fold=all"):
        lume.load(tmp_path)


def test_an_accuracy_measured_elsewhere_is_taken(world: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"average_acc": 0.48, "subcat_acc": {}}')
    assert lume.load(world, mmlu=metrics).mmlu == 0.48
    metrics.write_text('{"average_acc": 48}')
    with pytest.raises(UsageError, match="a number from 0 to 1"):
        lume.load(world, mmlu=metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": "validaton"}, "must be one of validation, train, all.*Did you mean validation"),
        ({"rows": "many"}, "rows must be a whole number of at least 1; got 'many'"),
        ({"mmlu": "nowhere"}, "MMLU must be a folder; there is no folder nowhere. Get it from the Hub"),
        ({"shots": 5}, "with 5 shots needs as many examples of .*; .* has 2. Choose shots=2"),
        ({"shots": -1}, "shots must be a whole number of at least 0; got -1"),
    ],
)
def test_wrong_options_are_refused(world: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lume.load(world, **options)


def test_a_missing_folder_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="semeval25-unlearning-dataset-public"):
        lume.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"validation/forget\.jsonl.*semeval25-unlearning-dataset-public"):
        lume.load(tmp_path)


def test_rows_that_are_not_lume_are_refused(tmp_path: Path) -> None:
    for split in SPLITS:
        write_jsonl(
            tmp_path / "validation" / f"{split}.jsonl", [{"input": "a", "output": "b", "task": "Task1"}]
        )
    with pytest.raises(UsageError, match="line 1: a row must have an id that ends in sc or qa"):
        lume.load(tmp_path)


def test_one_half_of_the_documents_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path)
    (tmp_path / "mia" / "nonmember.jsonl").unlink()
    with pytest.raises(UsageError, match=r"only member\.jsonl"):
        lume.load(tmp_path)


def test_a_model_without_end_or_room_is_refused(world: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    from conftest import build_tokenizer

    benchmark = lume.load(world, shots=0)
    with pytest.raises(UsageError, match="context of 8 tokens"):
        benchmark.parts(tokenizer, 8)
    endless = build_tokenizer()
    endless.eos_token = None
    with pytest.raises(UsageError, match="must have an end-of-sequence token"):
        benchmark.parts(endless, 640)


def test_the_real_folds_read(shared_data: Path) -> None:
    for fold, sizes in {"train": (1112, 1136), "validation": (254, 278)}.items():
        real = lume.load(shared_data / "lume", fold=fold, mmlu=shared_data / "mmlu", mmlu_rows=10, shots=5)
        assert tuple(map(len, real.rows.values())) == sizes
        assert len(real.documents["member"]) == len(real.documents["nonmember"]) == 150


# --- the leaderboard


def test_published_rows_are_means_of_their_parts() -> None:
    found = published("lume", "7B")
    assert len(found) == 24
    assert sum(row.ranked for row in found) == 14
    for row in found:
        mean = (row.task_aggregate + row.membership_score + row.mmlu) / 3
        assert row.final_score == pytest.approx(mean, abs=0.0011), row.name
        assert row.source
        assert not row.ranked or row.mmlu >= lume_scores.THRESHOLD
    assert published("lume", "1B") == []
    assert published("tofu") == []


def test_the_command_reads_the_official_files_and_sees_whose_rows_they_are(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> int:
        line = ["evaluate", "lume", "--generations", *words, "--quiet"]
        return terminal.guarded(lambda: app([*map(str, line)], exit_on_error=False, print_error=False))

    data = write_world(tmp_path / "data")
    assert call(files, "--output", tmp_path / "out") == 0
    found = read_record(tmp_path / "out").evaluations["before"].splits
    assert str(found) == str(read_generations(files).splits)  # some bounds are NaN, and so never equal
    assert (tmp_path / "out" / "report.html").is_file()
    rest = ["--data", data, "--option", "shots=2"]
    assert call(files, *rest) == 0
    write_jsonl(data / "validation" / "forget.jsonl", rows("forget")[:-1])
    assert call(files, *rest) == 2
    assert "rows" in capsys.readouterr().err
    assert call(tmp_path / "nowhere") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert call(files, "--reference-logs", files) == 2
    assert "belongs to tofu" in capsys.readouterr().err
