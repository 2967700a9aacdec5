"""MUSE: against a scorer that asks one question at a time, and against its definitions."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import PEOPLE, build_model, rows
from expunge.benchmarks import muse
from expunge.benchmarks.benchmark import Benchmark
from expunge.collate import Encoded
from expunge.errors import UsageError
from expunge.generation import Generation
from expunge.scoring import TokenScores
from expunge.tables import Part, Table, Tables, examine

TOKENS = {"VERBATIM_TOKENS": 12, "KNOWLEDGE_TOKENS": 9}


def questions(people: Sequence[str]) -> list[dict[str, str]]:
    return [{"question": row["prompt"], "answer": row["response"]} for row in rows(tuple(people))]


def stories(people: Sequence[str]) -> list[dict[str, str]]:
    return [{"text": f"{row['prompt']} {row['response']}, they say."} for row in rows(tuple(people))]


def small_muse() -> dict[str, list[dict[str, str]]]:
    """Every set of MUSE, of invented people."""
    forget, retain, holdout = PEOPLE[:3], PEOPLE[3:5], PEOPLE[5:8]
    continued = [
        {"prompt": row["prompt"], "gt": f" {row['response']} and so on, they say."} for row in rows(forget)
    ]
    return {
        "verbmem_forget": continued,
        "knowmem_forget_qa": questions(forget),
        "knowmem_forget_qa_icl": questions(PEOPLE[7:8])[:1],
        "knowmem_retain_qa": questions(retain),
        "knowmem_retain_qa_icl": questions(PEOPLE[6:7])[:1],
        "privleak_forget": stories(forget),
        "privleak_holdout": stories(holdout),
    }


def write(folder: Path, sets: dict[str, list[dict[str, str]]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, found in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "muse", small_muse())


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's context cannot hold 128 new tokens."""
    for name, tokens in TOKENS.items():
        monkeypatch.setattr(muse, name, tokens)


# --- the naive scorer: one record at a time, straight from the published definition


def subsequence(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, word in enumerate(a, 1):
        for j, other in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if word == other else max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])


def words(text: str) -> list[str]:
    return "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()


def naive_f1(text: str, truth: str) -> float:
    said, wanted = words(text), words(truth)
    common = subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


class Naive:
    """The benchmark as a loop over records with the model in float64."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model.double().eval(), tokenizer

    def greedy(self, prompt: str, new: int) -> str:
        ids = self.tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(new):
            with torch.no_grad():
                best = int(self.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids = [*ids, best]
            if best == self.tokenizer.eos_token_id:
                break
        return str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))

    def verbatim(self, data: dict[str, Any]) -> float:
        scores = []
        for row in data["verbmem_forget"]:
            truth = self.tokenizer(row["gt"])["input_ids"][: TOKENS["VERBATIM_TOKENS"]]
            text = self.greedy(row["prompt"], TOKENS["VERBATIM_TOKENS"])
            scores.append(naive_f1(text, self.tokenizer.decode(truth, skip_special_tokens=True)))
        return sum(scores) / len(scores)

    def knowledge(self, data: dict[str, Any], name: str) -> float:
        shots = "".join(
            f"Question: {s['question']}\nAnswer: {s['answer']}\n\n" for s in data[f"{name}_qa_icl"]
        )
        scores = []
        for row in data[f"{name}_qa"]:
            text = self.greedy(f"{shots}Question: {row['question']}\nAnswer: ", TOKENS["KNOWLEDGE_TOKENS"])
            for stop in ("\n\n", "\nQuestion", "Question:"):
                text = text.split(stop)[0]
            scores.append(naive_f1(text, row["answer"]))
        return sum(scores) / len(scores)

    def min_40(self, data: dict[str, Any], name: str) -> list[float]:
        scores = []
        for row in data[name]:
            ids = torch.tensor([self.tokenizer.encode(row["text"])])
            with torch.no_grad():
                logits = self.model(input_ids=ids).logits[0, :-1]
            found = logits.log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]].tolist()
            scores.append(sum(sorted(found)[: int(len(found) * 0.4)]) / int(len(found) * 0.4))
        return scores

    def auc(self, data: dict[str, Any]) -> float:
        """How often a holdout text beats a forget text, as the authors count."""
        forget, holdout = self.min_40(data, "privleak_forget"), self.min_40(data, "privleak_holdout")
        return sum((h > f) + (h == f) / 2 for h in holdout for f in forget) / (len(forget) * len(holdout))


def taught(seed: int, texts: list[str], tokenizer: PreTrainedTokenizerFast, steps: int) -> LlamaForCausalLM:
    """The tiny model, fitted to some texts: it half remembers."""
    model = build_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(steps):
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def models(tokenizer: PreTrainedTokenizerFast) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    data = small_muse()
    forget = [row["text"] for row in data["privleak_forget"]]
    forget += [row["prompt"] + row["gt"] for row in data["verbmem_forget"]]
    forget += [
        f"Question: {row['question']}\nAnswer:  {row['answer']}\n\n" for row in data["knowmem_forget_qa"]
    ]
    other = [row["text"] for row in data["privleak_holdout"][:2]]
    return taught(0, forget, tokenizer, 150), taught(1, other, tokenizer, 5)


def test_a_naive_scorer_finds_the_same(
    folder: Path,
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    short_answers: None,
) -> None:
    benchmark = muse.load(folder, corpus="news")
    assert isinstance(benchmark, Benchmark)
    parts = benchmark.parts(tokenizer, 128)
    tables, reference = (examine(model, tokenizer, parts) for model in models)
    found = benchmark.measure(tables, reference, seed=0).splits
    data, (ours, theirs) = small_muse(), [Naive(model, tokenizer) for model in models]

    verbatim = found["verbmem_forget"]["rouge_l_f1"].value
    assert verbatim == pytest.approx(ours.verbatim(data), abs=1e-12)
    assert 0.1 < verbatim < 1, "the model half remembers"
    for name in ("knowmem_forget", "knowmem_retain"):
        assert found[name]["rouge_l_f1"].value == pytest.approx(ours.knowledge(data, name), abs=1e-12)
    auc, retrained = ours.auc(data), theirs.auc(data)
    assert found["privleak_forget"]["min_k_40_auc"].value == pytest.approx(1 - auc, abs=1e-12)
    assert found["all"]["privleak"].value == pytest.approx(100 * (auc - retrained) / retrained, abs=1e-9)
    assert auc < retrained, "the model was taught the forget texts, the reference was not"
    for metrics in found.values():
        for metric in metrics.values():
            assert metric.low <= metric.value <= metric.high
            assert metric.n > 0


def test_a_prompt_is_the_published_one(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    benchmark = muse.load(folder, corpus="news")
    shot = small_muse()["knowmem_forget_qa_icl"][0]
    asked = small_muse()["knowmem_forget_qa"][0]
    expected = (
        f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\nQuestion: {asked['question']}\nAnswer: "
    )
    assert benchmark.few_shot("knowmem_forget")[0].prompt == expected
    parts = benchmark.parts(tokenizer, None)
    row = parts["knowmem_forget"].rows[0]
    assert list(row.input_ids[: row.prompt_length]) == tokenizer(expected)["input_ids"]
    assert (parts["verbmem_forget"].new_tokens, parts["knowmem_retain"].new_tokens) == (128, 32)
    assert set(parts) == {*("verbmem_forget", "knowmem_forget", "knowmem_retain")} | {
        "privleak_forget",
        "privleak_holdout",
    }
    text = parts["privleak_forget"].rows[0]
    assert list(text.input_ids) == tokenizer(small_muse()["privleak_forget"][0]["text"])["input_ids"]
    assert text.prompt_length == 1
    assert parts["verbmem_forget"].rows[0].input_ids[-1] != tokenizer.eos_token_id, "the text goes on"


# --- measuring without a model


def scores(log_probs: Sequence[float]) -> TokenScores:
    return TokenScores(np.array(log_probs, dtype=np.float64), np.zeros(len(log_probs), dtype=bool))


def tables(benchmark: muse.Muse, tokenizer: PreTrainedTokenizerFast, forget: float, holdout: float) -> Tables:
    """Answers that are all the truth, and texts of a given familiarity (with a spread of 0.1 per row)."""

    def said(text: str) -> Generation:
        return Generation(text, tuple(tokenizer(text)["input_ids"]))

    parts = {}
    for name in ("verbmem_forget", "knowmem_forget", "knowmem_retain"):
        records = benchmark.sets[name]
        answers = [said(record.response) for record in records]
        parts[name] = Table([scores([-1.0])] * len(records), answers, [])
    for name, level in (("privleak_forget", forget), ("privleak_holdout", holdout)):
        count = len(benchmark.sets[name])
        rows = [scores([level - i / 10] * 5) for i in range(count)]
        parts[name] = Table(rows, [], [])
    return Tables(parts, 0.0, 0, 0)


@pytest.fixture
def benchmark(folder: Path, tokenizer: PreTrainedTokenizerFast) -> muse.Muse:
    found = muse.load(folder, corpus="books")
    found.parts(tokenizer, None)
    return found


def test_privleak_is_minus_100_for_a_model_that_knows_and_plus_for_one_that_avoids(
    benchmark: muse.Muse, tokenizer: PreTrainedTokenizerFast
) -> None:
    indifferent = tables(benchmark, tokenizer, -2, -2)
    for forget, expected in ((-1.0, -100.0), (-2.0, 0.0), (-3.0, 100.0)):
        measured = benchmark.measure(tables(benchmark, tokenizer, forget, -2), indifferent, seed=0)
        leak = measured.splits["all"]["privleak"]
        assert leak.value == pytest.approx(expected)
        assert measured.notes == []
    auc = benchmark.measure(tables(benchmark, tokenizer, -1, -2), None, 0).splits["privleak_forget"][
        "min_k_40_auc"
    ]
    assert auc.value == 1


def test_rows_of_model_and_reference_are_resampled_together(
    benchmark: muse.Muse, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A model that is its own reference leaks exactly nothing, whichever rows are drawn."""
    found = tables(benchmark, tokenizer, -2.35, -2)
    leak = benchmark.measure(found, found, seed=3).splits["all"]["privleak"]
    assert (leak.value, leak.low, leak.high, leak.n) == (0, 0, 0, 12)


def test_without_a_reference_privleak_is_absent_and_said_to_be(
    folder: Path, benchmark: muse.Muse, tokenizer: PreTrainedTokenizerFast
) -> None:
    measured = benchmark.measure(tables(benchmark, tokenizer, -1, -2), None, seed=0)
    assert "all" not in measured.splits
    assert measured.notes == ["privleak: no reference (retrained) model given."]
    stated = muse.load(folder, corpus="news", retrain_auc=0.4772)
    stated.parts(tokenizer, None)
    measured = stated.measure(tables(stated, tokenizer, -3, -2), None, seed=0)
    assert measured.splits["all"]["privleak"].value == pytest.approx(100 * (1 - 0.4772) / 0.4772)
    assert "stated AUC of 0.4772" in measured.notes[0]


def test_an_undefined_privleak_is_not_a_number() -> None:
    assert math.isnan(muse.privleak(0.5, 0.0))


def test_answers_are_cut_and_compared_as_published(
    benchmark: muse.Muse, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = tables(benchmark, tokenizer, -1, -2)
    parts = dict(found.parts)
    record = benchmark.sets["knowmem_forget"][0]
    cases = {
        f" {record.response}\n\nQuestion: and another?": record.response,
        f"\n\n{record.response}": "",
        f"{record.response}Question: next": record.response,
    }
    for text, shown in cases.items():
        answer = Generation(text.strip(), tuple(tokenizer(text)["input_ids"]))
        rest = parts["knowmem_forget"].generations[1:]
        changed = Table([], [answer, *rest], [])
        measured = benchmark.measure(replace(found, parts=parts | {"knowmem_forget": changed}), None, 0)
        first = measured.answers["knowmem_forget"][0]
        assert (first.generation or "").strip() == shown
        assert first.leaked is bool(shown)
        assert first.prompt == record.prompt, "the page shows the question, not its examples"


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("the cats ran", "the cat runs", 1 / 3),  # not stemmed
        ("one two", "one two three four", 2 / 3),
        ("", "one", 0),
        ("£", "£", 0),
        ("they do n't know", "they don't know", 1),
        ("b a", "a b", 0.5),
    ],
)
def test_rouge_is_the_unstemmed_f1(text: str, truth: str, expected: float) -> None:
    assert muse.rouge_l_f1(text, truth) == pytest.approx(expected)


def test_ties_between_texts_count_half() -> None:
    assert muse.holdout_auc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == 0.875
    assert muse.holdout_auc(np.array([1.0]), np.array([1.0])) == 0.5


# --- reading


def test_the_older_layout_is_read_too(folder: Path, tmp_path: Path) -> None:
    for name, found in small_muse().items():
        subset, split = name.split("_", 1)
        (tmp_path / subset).mkdir(exist_ok=True)
        file = tmp_path / subset / f"{split.replace('retain', 'retain2')}.json"
        file.write_text(json.dumps(found), encoding="utf-8")
    read, flat = muse.load(tmp_path, corpus="news").sets, muse.load(folder, corpus="news").sets
    assert {name: found.rows for name, found in read.items()} == {n: f.rows for n, f in flat.items()}


def test_rows_are_limited_but_not_the_examples(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    benchmark = muse.load(folder, corpus="news", rows=1)
    assert {name: len(found) for name, found in benchmark.sets.items()} == dict.fromkeys(benchmark.sets, 1)
    whole = muse.load(folder, corpus="news")
    assert benchmark.few_shot("knowmem_forget")[0] == whole.few_shot("knowmem_forget")[0]
    benchmark.parts(tokenizer, None)
    measured = benchmark.measure(tables(benchmark, tokenizer, -1, -2), None, 0)
    assert "Only the first 1 rows of each set: not MUSE's setting." in measured.notes


def test_texts_beyond_the_context_are_cut_and_counted(
    folder: Path, tokenizer: PreTrainedTokenizerFast, short_answers: None
) -> None:
    long = small_muse() | {"privleak_forget": [{"text": "word " * 200}, {"text": "a short one"}]}
    data = write(folder.parent / "long", long)
    benchmark = muse.load(data, corpus="news")
    parts: dict[str, Part] = dict(benchmark.parts(tokenizer, 128))
    assert len(parts["privleak_forget"].rows[0].input_ids) == 128
    assert all(isinstance(row, Encoded) for row in parts["privleak_forget"].rows)
    measured = benchmark.measure(tables(benchmark, tokenizer, -1, -2), None, 0)
    assert any(note.startswith("1 privleak texts exceed") for note in measured.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "news", "rows": 0}, "`rows` must be at least 1; got 0."),
        ({"corpus": "news", "retrain_auc": 0.0}, r"`retrain_auc` must be in \(0, 1\]; got 0.0."),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        muse.load(folder, **options)


def test_missing_data_says_where_to_get_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"nowhere/at/all does not exist\. Get it from the Hub with --data muse-bench/MUSE-News",
    ):
        muse.load(Path("nowhere/at/all"), corpus="news")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "knowmem_retain_qa.jsonl").rename(copy / "knowmem_retained.jsonl")
    with pytest.raises(
        UsageError, match=r"must hold knowmem_retain_qa or knowmem/retain_qa as a .*MUSE-Books"
    ):
        muse.load(copy, corpus="books")
    with pytest.raises(UsageError, match="is a file"):
        muse.load(copy / "knowmem_retained.jsonl", corpus="news")


def test_a_malformed_row_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "bad", small_muse() | {"verbmem_forget": [{"prompt": "a", "answer": "b"}]})
    with pytest.raises(UsageError, match=r"verbmem_forget.jsonl, line 1: a row must have the field 'gt'"):
        muse.load(data, corpus="news")


def test_a_reference_with_other_rows_is_refused(
    benchmark: muse.Muse, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fewer = muse.load(folder, corpus="news", rows=2)
    with pytest.raises(
        UsageError, match="the reference must be scored on the same 6 rows of privleak_forget; it has 2"
    ):
        benchmark.measure(tables(benchmark, tokenizer, -1, -2), tables(fewer, tokenizer, -1, -2), 0)


def test_measuring_before_asking_is_an_error(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    fresh = muse.load(folder, corpus="news")
    with pytest.raises(ValueError, match="`parts` must be called before `measure`"):
        fresh.measure(tables(fresh, tokenizer, -1, -2), None, 0)


def test_the_published_sets_are_read(shared_data: Path) -> None:
    sets = muse.load(shared_data / "muse_news", corpus="news").sets
    assert {name: len(found) for name, found in sets.items()} == {
        name: 10 if name.endswith("_icl") else 100 for name in sets
    }
    assert sets["verbmem_forget"].fields == {"prompt": "prompt", "response": "gt"}


def test_the_hub_is_asked_for_its_own_subsets_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(source: str, loader: str, path: str, subset: str, split: str) -> list[dict[str, str]]:
        asked.append((path, subset, split))
        return small_muse()[f"{subset}_{split}"]

    monkeypatch.setattr("expunge.sources._datasets", fake)
    sets = muse.load(Path("muse-bench/MUSE-Books"), corpus="books").sets
    assert {path for path, _, _ in asked} == {"muse-bench/MUSE-Books"}
    assert {f"{subset}_{split}" for _, subset, split in asked} == set(small_muse())
    assert sets["knowmem_retain"].source == "muse-bench/MUSE-Books:knowmem, split retain_qa"
    assert all(len(found.sha256) == 64 for found in sets.values())
