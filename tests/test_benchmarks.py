"""A named benchmark from the command line and from Python: stages, reference, options, refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedTokenizerBase

import conftest
import expunge
from expunge import UsageError, benchmarks, intervals
from expunge.benchmarks import BENCHMARKS, Entry
from expunge.benchmarks.benchmark import Answer, Benchmark, Measured
from expunge.catalogue import catalogue
from expunge.cli import app
from expunge.collate import Encoding
from expunge.record import read_record
from expunge.records import Records, read_records
from expunge.tables import Part, Tables
from expunge.terminal import guarded

QUICK = {"bf16": False, "seed": 0}


@dataclass(frozen=True)
class Toy:
    """NLL beside the reference's."""

    sets: Mapping[str, Records]
    tokens: int
    name: str = "toy"

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Mapping[str, Part]:
        rows = Encoding("none").rows(self.sets["questions"], tokenizer, context=context)
        return {"questions": Part(rows, new_tokens=self.tokens)}

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        table = tables["questions"]
        found = {"nll": intervals.mean([scores.nll for scores in table.scores], seed=seed)}
        if reference is not None:
            theirs = [scores.nll for scores in reference["questions"].scores]
            found["nll_change"] = intervals.mean(
                [a.nll - b for a, b in zip(table.scores, theirs, strict=True)], seed=seed
            )
        answers = [
            Answer(record.prompt, record.response, generation.text)
            for record, generation in zip(self.sets["questions"], table.generations, strict=True)
        ]
        notes = () if reference is not None else ("nll_change: no reference model given",)
        return Measured({"questions": found}, {"questions": answers}, notes)


def load(data: Path, *, tokens: int = 3, template: str = "none", kind: str = "") -> Toy:
    if not data.is_dir():
        raise UsageError(f"--data must be a folder; there is no {data}. Get it from the Hub.")
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1; got {tokens}.")
    return Toy({"questions": read_records(data / "q.jsonl", name="questions")}, tokens)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Registers the benchmark, and gives its folder."""
    module = ModuleType("expunge.benchmarks.toy")
    module.load, module.METRICS = load, {"nll": "not this one", "nll_change": "Change from the reference."}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BENCHMARKS, "toy", Entry("toy", "A toy.", {"kind": "wooden"}))
    folder = tmp_path / "toy"
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in conftest.rows()[:4])
    (folder / "q.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    conftest.build_model(seed=5).save_pretrained(folder)
    conftest.build_tokenizer().save_pretrained(folder)
    return folder


def test_the_reference_comes_first_and_is_given_to_the_others(
    toy: Path, model_folder: Path, other: Path, tmp_path: Path
) -> None:
    record = expunge.evaluate(
        model_folder,
        benchmark="toy",
        data=toy,
        reference=other,
        original=other,
        output=tmp_path / "out",
        **QUICK,
    ).record
    assert list(record.evaluations) == ["control", "before", "after"]
    change = {stage: e.splits["questions"].get("nll_change") for stage, e in record.evaluations.items()}
    assert change["control"] is None or change["control"].value == 0
    assert change["before"].value == 0
    assert change["after"].value != 0
    assert record.configuration["benchmark"] == "toy"
    assert record.data["questions"].rows == 4
    assert len(record.samples) == 4
    assert set(record.samples[0].generations) == {"control", "before", "after"}
    assert record.samples[0].leaked == {}
    assert read_record(tmp_path / "out") == record
    assert (tmp_path / "out" / "report.html").is_file()


def test_notes_of_a_benchmark_stand_in_the_record(toy: Path, model_folder: Path) -> None:
    record = expunge.evaluate(model_folder, benchmark="toy", data=toy, **QUICK).record
    assert record.notes == ["nll_change: no reference model given"]
    assert list(record.evaluations) == ["before"]
    assert "nll_change" not in record.evaluations["before"].splits["questions"]


def test_a_benchmark_object_needs_no_name(toy: Path, model_folder: Path) -> None:
    benchmark = BENCHMARKS["toy"](toy, tokens=2)
    assert isinstance(benchmark, Benchmark)
    record = expunge.evaluate(model_folder, benchmark=benchmark, **QUICK).record
    assert record.evaluations["before"].generated_tokens <= 8


def test_options_and_cache_from_the_command_line(
    toy: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        "toy",
        "--model",
        str(model_folder),
        "--data",
        str(toy),
        "--cache",
        str(tmp_path / "kept"),
    ]
    for out in ("a", "b"):
        done = [*words, "--option", "tokens=5", "--output", str(tmp_path / out), "--json"]
        assert guarded(lambda done=done: app(done, exit_on_error=False, result_action="return_value")) == 0
    first, second = (read_record(tmp_path / out).evaluations for out in ("a", "b"))
    assert first == second, "seconds included: the second run took the first one's tables"
    assert first["before"].generated_tokens > 4 * 3
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"benchmark": "tyo"}, "Did you mean toy"),
        ({"data": None}, "Give --data DIR"),
        ({"data": "nowhere"}, "Get it from the Hub"),
        ({"forget": conftest.rows()}, "brings its own sets"),
        ({"options": {"token": 1}}, "must be one of tokens, template for this benchmark; got 'token'"),
        ({"options": {"kind": "iron"}}, "got 'kind'"),
        ({"options": {"tokens": 0}}, "tokens must be at least 1"),
        ({"options": {"tokens": "many"}}, "--option was refused"),
        ({"benchmark": "records"}, "belong to a named benchmark"),
        ({"benchmark": "records", "data": None}, "none of --forget"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    toy: Path, words: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        expunge.evaluate("no/such-model", **{"benchmark": "toy", "data": toy, **words, **QUICK})


def test_benchmarks_and_their_metrics_are_listed(toy: Path) -> None:
    found = catalogue()
    assert found["benchmarks"]["toy"] == "A toy."
    assert found["metrics"]["nll_change"] == "Change from the reference."
    assert found["metrics"]["nll"].startswith("Negative log-likelihood")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_registered_benchmark_can_be_imported(name: str) -> None:
    entry = BENCHMARKS[name]
    assert entry.metrics
    assert set(entry.fixed).isdisjoint(entry.options)
    assert benchmarks.Entry(entry.module, entry.line).options
