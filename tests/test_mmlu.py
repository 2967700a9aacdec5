"""MMLU from local rows: prompts to the letter, both variants against a naive count, samples, refusals."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import naive_lume
from conftest import build_model
from expunge import UsageError
from expunge.benchmarks import harness, mmlu
from expunge.benchmarks.benchmark import Benchmark
from expunge.collate import Encoded
from expunge.scoring import TokenScores
from expunge.tables import Table, Tables, examine
from lume_world import questions, write_jsonl

QUESTIONS = questions(10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmlu")
    write_jsonl(folder / "test.jsonl", QUESTIONS)
    write_jsonl(folder / "dev.jsonl", questions(6, "dev"))
    return folder


def prompts(benchmark: mmlu.Mmlu, tokenizer: Any, context: int | None = None) -> list[str]:
    found = benchmark.parts(tokenizer, context)["mmlu"].rows
    return [tokenizer.decode(row.input_ids[: row.prompt_length]) for row in found[::4]]


def test_the_letter_prompt_is_open_instructs(world: Path, tokenizer: Any) -> None:
    assert prompts(mmlu.load(world, shots=1), tokenizer)[0] == (
        "The following are multiple choice questions (with answers) about  old places.\n\n"
        "Which is number 0 of dev?\nA. Arden 0\nB. Boreal 1\nC. Corran 2\nD. Dunmore 3\nAnswer: A\n\n"
        "Which is number 0 of test?\nA. Arden 0\nB. Boreal 1\nC. Corran 2\nD. Dunmore 3\nAnswer:"
    )


def test_the_text_prompt_hides_the_options(world: Path, tokenizer: Any) -> None:
    benchmark = mmlu.load(world, shots=1, variant="text")
    assert prompts(benchmark, tokenizer)[1] == (
        "The following are questions (with answers) about geese.\n\n"
        "Which is number 1 of dev?\nAnswer: Corran 1\n\nWhich is number 1 of test?\nAnswer:"
    )
    rows = benchmark.parts(tokenizer, None)["mmlu"].rows
    assert [tokenizer.decode(row.labels) for row in rows[:2]] == [" Arden 0", " Boreal 1"]


@pytest.mark.parametrize("shots", [0, 2])
def test_letters_agree_with_a_naive_count(world: Path, tokenizer: Any, shots: int) -> None:
    model = build_model(seed=3, context=640)
    benchmark = mmlu.load(world, shots=shots)
    assert isinstance(benchmark, Benchmark)
    found = benchmark.measure(examine(model, tokenizer, benchmark.parts(tokenizer, 640)), None, 0)
    examples = questions(6, "dev")[: 2 * shots]
    assert found.splits["all"]["mmlu"].value == naive_lume.mmlu(model, tokenizer, QUESTIONS, examples)
    assert found.splits["all"]["mmlu"].n == 10
    assert f"{shots}-shot" in found.notes[0]
    assert "all 10 questions" in found.notes[0]


def test_texts_are_compared_per_character(world: Path, tokenizer: Any) -> None:
    model = build_model(seed=4, context=640)
    benchmark = mmlu.load(world, shots=0, variant="text")
    tables = examine(model, tokenizer, benchmark.parts(tokenizer, 640))
    expected = []
    for question in QUESTIONS:
        subject = question["subject"].replace("_", " ")
        prompt = (
            f"The following are questions (with answers) about {subject}.\n\n{question['question']}\nAnswer:"
        )
        head = tokenizer(prompt).input_ids
        scores = []
        for choice in question["choices"]:
            body = tokenizer(f" {choice}").input_ids
            total = -naive_lume.loss(model, head + body, len(head)) * len(body)
            scores.append(total / len(choice))
        expected.append(max(range(4), key=scores.__getitem__) == question["answer"])
    assert mmlu.correct(benchmark, tables) == expected


def scores(*values: float) -> list[TokenScores]:
    return [TokenScores(np.array([value], dtype=np.float64), np.array([False])) for value in values]


def test_accuracy_over_questions_and_over_subjects(world: Path) -> None:
    """Right on both subjects' first questions only; a tie goes to the first option, NaN loses."""
    whole = mmlu.load(world, shots=0)
    benchmark = dataclasses.replace(whole, questions=whole.questions[:3])  # answers 0, 1, 2; two old places
    found = scores(-1, -1, -2, -3) + scores(-2, -1, -3, -4) + scores(float("nan"), -1, -2, -3)
    measured = benchmark.measure(Tables({"mmlu": Table(found, [], [])}, 0.0, 0, 0), None, 0)
    assert measured.splits["all"]["mmlu"].value == pytest.approx(2 / 3)
    assert measured.splits["all"]["mmlu_subjects"].value == pytest.approx((1 / 2 + 1) / 2)
    assert [a.generation for a in measured.answers["mmlu"]] == ["Arden 0", "Corran 1", "Dunmore 1"]


def test_examples_are_dropped_until_the_prompt_fits(world: Path, tokenizer: Any) -> None:
    benchmark = mmlu.load(world, shots=3)
    full = benchmark.parts(tokenizer, None)["mmlu"].rows[0].prompt_length
    bare = mmlu.load(world, shots=0).parts(tokenizer, None)["mmlu"].rows[0].prompt_length
    short = benchmark.parts(tokenizer, full)["mmlu"].rows[0]
    assert bare < short.prompt_length < full
    with pytest.raises(UsageError, match=f"must fit {bare - 1} tokens"):
        benchmark.parts(tokenizer, bare)


def test_samples_are_drawn_by_seed_and_nested(world: Path) -> None:
    def drawn(rows: int, seed: int) -> set[str]:
        return {q.text for q in mmlu.load(world, shots=0, rows=rows, seed=seed).questions}

    assert drawn(3, 1) < drawn(6, 1)
    assert drawn(3, 1) != drawn(3, 2)
    assert len(drawn(99, 0)) == 10
    assert "3 of 10 questions drawn with seed 1" in mmlu.load(world, shots=0, rows=3, seed=1).notes[0]


def test_the_hubs_parquet_is_read(tmp_path: Path) -> None:
    import pandas

    (tmp_path / "all").mkdir()
    pandas.DataFrame(QUESTIONS).to_parquet(tmp_path / "all" / "test-00000-of-00001.parquet")
    assert mmlu.load(tmp_path, shots=0).questions == mmlu.load(tmp_path, shots="0").questions
    assert len(mmlu.load(tmp_path, shots=0).questions) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a", "b", "c"]}, r"test\.jsonl, line 2: a row must have subject"),
        ({"answer": 4}, r"answer \(0 to 3\)"),
        ({"answer": "A"}, "choices"),
        ({"question": None}, "choices"),
    ],
)
def test_malformed_rows_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_jsonl(tmp_path / "test.jsonl", [QUESTIONS[0], QUESTIONS[1] | change])
    with pytest.raises(UsageError, match=message):
        mmlu.load(tmp_path, shots=0)


def test_wrong_options_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be one of letter, text; got 'words'"):
        mmlu.load(world, variant="words")
    with pytest.raises(UsageError, match=r"test questions .* Get it from the Hub"):
        mmlu.load(tmp_path)
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="must be at least one"):
        mmlu.load(tmp_path, shots=0)


def test_letters_without_tokens_of_their_own_are_refused(world: Path, tokenizer: Any) -> None:
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    blind = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?")
    with pytest.raises(UsageError, match="A, B, C and D a token each"):
        mmlu.load(world, shots=0).parts(blind, None)


def test_the_real_set_reads(shared_data: Path, tokenizer: Any) -> None:
    benchmark = mmlu.load(shared_data / "mmlu", rows=40, seed=1)
    assert benchmark.total == 14042
    rows = benchmark.parts(tokenizer, None)["mmlu"].rows
    assert len(rows) == 160
    assert all(isinstance(row, Encoded) and row.prompt_length <= mmlu.LONGEST for row in rows)


# --- through the harness


def fake_harness(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    found = {name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.models")}
    found["lm_eval.evaluator"] = types.ModuleType("lm_eval.evaluator")
    found["lm_eval.evaluator"].simple_evaluate = run  # type: ignore[attr-defined]
    found["lm_eval.models.huggingface"] = types.ModuleType("lm_eval.models.huggingface")
    found["lm_eval.models.huggingface"].HFLM = dict  # type: ignore[attr-defined]
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_the_harness_is_asked_and_read(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    asked: dict[str, Any] = {}

    def run(**given: Any) -> dict[str, Any]:
        asked.update(given)
        accuracy = {"wmdp_bio": [1, 1, 0, 0], "wmdp_cyber": [1.0], "wmdp_chem": [0.0, 0.0, 1.0]}
        return {"samples": {task: [{"acc": a} for a in flags] for task, flags in accuracy.items()}}

    fake_harness(monkeypatch, run)
    model = build_model()
    found = harness.evaluate(model, tokenizer, "wmdp", rows=4)
    assert asked["tasks"] == ["wmdp_bio", "wmdp_cyber", "wmdp_chem"]
    assert asked["model"]["pretrained"] is model
    assert asked["limit"] == 4
    assert asked["num_fewshot"] is None
    assert found.splits["wmdp_bio"]["accuracy"].value == 0.5
    assert found.splits["all"]["accuracy"].value == 0.5
    assert found.splits["all"]["accuracy"].n == 8
    assert "first 4 questions" in found.notes[0]


def test_without_the_harness_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"needs the package lm_eval.*pip install 'expunge\[lm-eval\]'"):
        harness.evaluate(torch.nn.Linear(1, 1), tokenizer, "mmlu")


def test_what_the_harness_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    def run(**_: Any) -> dict[str, Any]:
        raise ConnectionError("no route to the Hub")

    fake_harness(monkeypatch, run)
    with pytest.raises(UsageError, match="no route to the Hub"):
        harness.evaluate(build_model(), tokenizer, "wmdp")
    with pytest.raises(ValueError, match="must be one of mmlu, wmdp; got 'arc'"):
        harness.evaluate(build_model(), tokenizer, "arc")
