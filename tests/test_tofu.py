"""TOFU: reading, the batched path against a naive scorer, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp

import tofu_world
from conftest import build_model
from expunge.benchmarks import tofu
from expunge.benchmarks.benchmark import Benchmark
from expunge.benchmarks.tofu import metrics, suite
from expunge.benchmarks.tofu.data import read_set
from expunge.benchmarks.tofu.questions import trueness
from expunge.collate import Encoded, collate
from expunge.errors import UsageError
from expunge.scoring import TokenScores
from expunge.tables import Tables, examine

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tofu_world.write(tmp_path_factory.mktemp("data") / "tofu")


@pytest.fixture(scope="module")
def benchmark(folder):
    return tofu.load(folder, forget="forget01", new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def models(tokenizer, folder):
    """A model that half remembers what it is asked, and a reference that does not, in float64."""
    pair = taught(tokenizer, folder), build_model(1)
    for model in pair:
        # The eager attention takes its softmax in fp32, where a mask of float64 overflows.
        model.set_attn_implementation("sdpa")
        model.double().eval()
    return pair


@pytest.fixture(scope="module")
def tables(benchmark, models, tokenizer):
    parts = benchmark.parts(tokenizer, 128)
    return tuple(examine(model, tokenizer, parts) for model in models)


def taught(tokenizer, folder, steps=60):
    """The tiny model after some steps on every second row of forget, retain and the real world."""
    torch.manual_seed(0)
    model = build_model(0)
    scorer = Naive(model, tokenizer, folder)
    files = ("forget01", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    rows = [scorer.ids(row["question"], row["answer"]) for file in files for row in scorer.rows(file)[::2]]
    examples = [Encoded((*head, *body), len(head)) for head, body in rows]
    batch = collate(examples, tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# --- a second, deliberately naive scorer


class Naive:
    """One record at a time in float64, straight from the definitions."""

    def __init__(self, model, tokenizer, folder):
        self.model, self.tokenizer, self.folder = model, tokenizer, folder

    def rows(self, name):
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    def ids(self, prompt, answer):
        head = self.tokenizer(prompt)["input_ids"]
        return head, [*self.tokenizer(" " + answer)["input_ids"], self.tokenizer.eos_token_id]

    def table(self, prompt, answer, grad=False):
        head, body = self.ids(prompt, answer)
        with torch.set_grad_enabled(grad):
            logits = self.model(torch.tensor([head + body])).logits[0, len(head) - 1 : -1]
            return torch.log_softmax(logits, -1), torch.tensor(body)

    def log_probs(self, prompt, answer, grad=False):
        table, body = self.table(prompt, answer, grad)
        return table[torch.arange(len(body)), body]

    def nll(self, prompt, answer):
        return -float(self.log_probs(prompt, answer).mean())

    def generation(self, prompt):
        ids, start = list(self.tokenizer(prompt)["input_ids"]), len(self.tokenizer(prompt)["input_ids"])
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
        return self.tokenizer.decode(ids[start:], skip_special_tokens=True)

    def rouge(self, row):
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return scorer.score(row["answer"], self.generation(row["question"]))["rougeL"].recall

    def ratio(self, row):
        truth = self.nll(row["question"], row.get("paraphrased_answer", row["answer"]))
        wrong = [self.nll(row["question"], answer) for answer in row["perturbed_answer"]]
        return math.exp(-sum(wrong) / len(wrong)) / math.exp(-truth)

    def normalised(self, row):
        truth = math.exp(-self.nll(row["question"], row["answer"]))
        return truth / (truth + sum(math.exp(-self.nll(row["question"], w)) for w in row["perturbed_answer"]))

    def split(self, file, forget=False, options=False):
        rows = self.rows(file)
        ratios = [self.ratio(row) for row in rows]
        found = {
            "probability": [math.exp(-self.nll(row["question"], row["answer"])) for row in rows],
            "rouge_l_recall": [self.rouge(row) for row in rows],
            "truth_ratio": [min(r, 1 / r) if forget else max(0, 1 - r) for r in ratios],
            "truth_share": [1 / (1 + r) for r in ratios],
        }
        if options:
            found["normalised_probability"] = [self.normalised(row) for row in rows]
        return {name: sum(values) / len(values) for name, values in found.items()}

    def matches(self, row):
        table, body = self.table(row["question"], row["answer"])
        return (table.argmax(-1) == body).tolist()[:-1]

    def memorised(self):
        rows = [self.matches(row) for row in self.rows("forget01")]
        strength = []
        for matches in rows:
            k = next((k for k in range(len(matches)) if all(matches[k:])), len(matches))
            strength.append(1 - k / len(matches))
        return {
            "extraction_strength": sum(strength) / len(strength),
            "exact_memorization": sum(sum(m) / len(m) for m in rows) / len(rows),
        }

    def attack(self, name, row, reference):
        log_probs = self.log_probs(row["question"], row["answer"])
        nll = -float(log_probs.mean())
        if name == "loss":
            return -nll
        if name == "zlib":
            return -nll / len(zlib.compress(row["answer"].encode()))
        if name == "reference":
            return reference.nll(row["question"], row["answer"]) - nll
        if name == "gradient_norm":
            self.model.zero_grad()
            (-self.log_probs(row["question"], row["answer"], grad=True).mean()).backward()
            return -math.sqrt(sum(float((p.grad**2).sum()) for p in self.model.parameters()))
        values = log_probs[:-1]
        if name == "min_k_plus_plus":
            table = self.table(row["question"], row["answer"])[0][:-1]
            mean = (table.exp() * table).sum(-1)
            values = (values - mean) / ((table.exp() * table**2).sum(-1) - mean**2).sqrt()
        kept = sorted(values.tolist())[: max(1, int(0.4 * len(values)))]
        return sum(kept) / len(kept)

    def auc(self, name, reference=None):
        ours, theirs = (
            [self.attack(name, row, reference) for row in self.rows(file)]
            for file in ("forget01", "holdout01")
        )
        wins = [(a > b) + (a == b) / 2 for a in ours for b in theirs]
        return sum(wins) / len(wins)


def test_batched_path_agrees_with_the_naive_scorer(benchmark, tables, models, tokenizer, folder):
    ours, theirs = (Naive(model, tokenizer, folder) for model in models)
    result = benchmark.measure(*tables, seed=0)
    assert 0.2 < result.splits["all"]["model_utility"].value < 0.9, "the model must half remember"
    expected = {
        "forget": ours.split("forget01_perturbed", forget=True) | ours.memorised(),
        "retain": ours.split("retain_perturbed"),
        "real_authors": ours.split("real_authors_perturbed", options=True),
        "world_facts": ours.split("world_facts_perturbed", options=True),
    }
    attacks = ("loss", "zlib", "reference", "min_k", "min_k_plus_plus", "gradient_norm")
    expected["forget"] |= {f"membership_{name}_auc": ours.auc(name, theirs) for name in attacks}
    nine = [
        expected[name][metric]
        for name in ("retain", "real_authors", "world_facts")
        for metric in (
            "rouge_l_recall",
            "truth_ratio",
            "probability" if name == "retain" else "normalised_probability",
        )
    ]
    ratios = [[scorer.ratio(row) for row in scorer.rows("forget01_perturbed")] for scorer in (ours, theirs)]
    test = ks_2samp(*ratios, method="exact")
    areas = [1 - scorer.auc("min_k") for scorer in (ours, theirs)]
    expected["all"] = {
        "model_utility": 9 / sum(1 / value for value in nine) if all(nine) else 0.0,
        "forget_ks": test.statistic,
        "forget_quality": test.pvalue,
        "privleak": (areas[0] - areas[1]) / areas[1] * 100,
    }
    assert {name: set(found) for name, found in result.splits.items()} == {
        n: set(e) for n, e in expected.items()
    }
    for name, values in expected.items():
        for metric, value in values.items():
            found = result.splits[name][metric]
            assert found.value == pytest.approx(value, abs=1e-6), (name, metric)
            assert found.low <= found.value <= found.high, (name, metric)


def test_every_metric_is_described(benchmark, tables):
    found = benchmark.measure(*tables, seed=0).splits
    assert {metric for split in found.values() for metric in split} == set(tofu.METRICS)


def test_is_a_benchmark_whose_answers_are_shown(benchmark, tables, tokenizer, models, folder):
    assert isinstance(benchmark, Benchmark)
    result = benchmark.measure(tables[0], None, seed=0)
    assert {name: len(answers) for name, answers in result.answers.items()} == {
        name: size for name, size in tofu_world.SIZES.items() if name != "holdout"
    }
    answer = result.answers["forget"][2]
    naive = Naive(models[0], tokenizer, folder)
    assert answer.prompt == "Where is f2?"
    assert answer.generation == naive.generation(answer.prompt).strip()
    assert answer.nll == pytest.approx(naive.nll(answer.prompt, answer.response))
    assert answer.leaked is False


def test_without_a_reference_there_is_no_forget_quality_and_it_is_said(benchmark, tables):
    result = benchmark.measure(tables[0], None, seed=0)
    assert set(result.splits["all"]) == {"model_utility"}
    assert "membership_reference_auc" not in result.splits["forget"]
    assert any("forget quality and privleak: no reference" in note for note in result.notes)


def test_without_holdout_there_is_no_attack(tables, folder, tokenizer, tmp_path):
    copy = tofu_world.write(tmp_path / "tofu")
    (copy / "holdout01.jsonl").unlink()
    benchmark = tofu.load(copy, forget="forget01", new_tokens=NEW_TOKENS)
    assert "holdout" not in benchmark.sets
    assert not any(part.gradients or part.moments for part in benchmark.parts(tokenizer, 128).values())
    result = benchmark.measure(tables[0], tables[1], seed=0)
    assert not any("membership" in metric for metric in result.splits["forget"])
    assert any("holdout" in note for note in result.notes)


def test_a_shared_question_keeps_both_its_rows(benchmark, tables):
    answers = benchmark.measure(tables[0], None, seed=0).answers
    assert answers["forget"][0].prompt == answers["retain"][0].prompt
    assert answers["forget"][0].response != answers["retain"][0].response


def test_a_reference_of_other_rows_is_refused(benchmark, tables):
    model, reference = tables
    shorter = {name: replace(table, scores=table.scores[:4]) for name, table in reference.items()}
    with pytest.raises(
        UsageError, match="results of the reference must be of the same questions: 6 of forget; got 4"
    ):
        benchmark.measure(model, Tables(shorter, 0.0, 0, 0), seed=0)


def test_perfect_memory_scores_one_and_utility_of_a_dead_component_is_zero():
    known = TokenScores(np.zeros(4), np.array([True, False, True, True]))
    assert suite.extraction_strength(known) == 0.5
    assert suite.extraction_strength(replace(known, matches=np.ones(4, bool))) == 1
    assert suite.extraction_strength(replace(known, matches=np.array([True] * 3 + [False]))) == 0
    assert metrics.model_utility([0.5] * 8 + [0.0]) == 0
    assert str(trueness(0.5)) == "0.0"
    assert metrics.model_utility([0.25, 1.0]) == pytest.approx(0.4)


@pytest.mark.parametrize("n", [1, 2, 7, 40, 400])
def test_p_values_of_equal_samples_are_the_exact_ones(n):
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.3, 1.5, 5.0):
        ours, theirs = rng.normal(size=n), rng.normal(shift, size=n)
        distance, p_value = metrics.forget_quality(list(ours), list(theirs))
        assert metrics._distance({"model": ours, "reference": theirs}) == pytest.approx(distance, abs=1e-12)
        assert metrics.ks_p_value(distance, n) == pytest.approx(p_value, rel=1e-9, abs=1e-12)


# --- reading


def test_gzip_and_rows(folder, tmp_path):
    copy = tmp_path / "tofu"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / (file.name + ".gz")).write_bytes(gzip.compress(file.read_bytes()))
    benchmark = tofu.load(copy, forget="forget01", rows=2)
    assert {name: len(records) for name, records in benchmark.sets.items()} == dict.fromkeys(
        tofu_world.SIZES, 2
    )
    assert (
        benchmark.questions["forget"].records.rows
        == tofu.load(folder, forget="forget01").sets["forget"].rows[:2]
    )


def test_training_sets_are_the_forget_set_and_its_rest(folder):
    sets = tofu.training_sets(folder, "forget01")
    assert {name: len(records) for name, records in sets.items()} == {"forget": 6, "retain": 5, "holdout": 6}


def test_the_prompt_is_put_as_asked(folder, tokenizer):
    benchmark = tofu.load(folder, forget="forget01", prompt="Question: {question}\nAnswer:", template="none")
    row = benchmark.parts(tokenizer, None)["forget/paraphrased"].rows[1]
    text = tokenizer.decode(list(row.input_ids[: row.prompt_length]))
    assert text == "Question: Where is f1?\nAnswer:"


def test_the_hub_id_is_asked_by_subset(monkeypatch):
    asked = []

    def loader(path, subset, split):
        asked.append((path, subset, split))
        return [{"question": "Where?", "answer": "Here"}]

    monkeypatch.setattr("datasets.load_dataset", loader)
    assert read_set("locuslab/TOFU", "retain99", "retain")[0].response == "Here"
    assert asked == [("locuslab/TOFU", "retain99", "train")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget": "forget1"}, "one of forget01, forget05, forget10; got 'forget1'. Did you mean forget10"),
        (
            {"forget": "forget05"},
            "must hold forget05_perturbed.jsonl .* found forget01_perturbed.jsonl.*locuslab/TOFU",
        ),
        ({"forget": "forget01", "rows": 0}, "rows must be at least 1; got 0"),
        ({"forget": "forget01", "prompt": "What?"}, "prompt must hold {question}"),
        (
            {"forget": "forget01", "template": "llama"},
            "template must be one of auto, chat, none; got 'llama'",
        ),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    with pytest.raises(UsageError, match=message):
        tofu.load(folder, **options)


def test_a_missing_folder_says_where_to_get_the_data(tmp_path):
    with pytest.raises(UsageError, match=r"there is none at .*nowhere.*locuslab/TOFU"):
        tofu.load(tmp_path / "nowhere")


def test_a_row_without_wrong_answers_is_refused_by_its_line(folder, tmp_path):
    copy = tofu_world.write(tmp_path / "tofu")
    file = copy / "world_facts_perturbed.jsonl"
    file.write_text(file.read_text() + '{"question": "Where?", "answer": "Here"}\n')
    with pytest.raises(
        UsageError, match=r"world_facts_perturbed.jsonl, line 4: field 'perturbed_answer'.*found null"
    ):
        tofu.load(copy, forget="forget01")


def test_the_real_data(shared_data, tokenizer):
    benchmark = tofu.load(shared_data / "tofu")
    sizes = {name: len(records) for name, records in benchmark.sets.items()}
    assert sizes == {"forget": 400, "retain": 400, "real_authors": 100, "world_facts": 117, "holdout": 400}
    assert {len(wrong) for wrong in benchmark.questions["forget"].perturbed} == {5}
    assert {len(wrong) for wrong in benchmark.questions["world_facts"].perturbed} == {3}
    training = tofu.training_sets(shared_data / "tofu")
    assert [record.response for record in training["forget"]] == [
        r.response for r in benchmark.sets["forget"]
    ]
    full = read_set(shared_data / "tofu", "full", "full")
    assert full[100].prompt == full[440].prompt
    assert full[100].response != full[440].response


def test_every_metric_has_its_page():
    folder = Path(__file__).parents[1] / "docs" / "metrics"
    if not folder.is_dir():
        pytest.skip("the documentation is not beside the tests")
    for metric in tofu.METRICS:
        page = (folder / f"{metric}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {metric}\n")
        assert "## When it misleads" in page
