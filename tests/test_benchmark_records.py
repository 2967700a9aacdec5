"""The benchmark on records: against a naive scorer, with a model that knows one half of a small world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import PEOPLE, build_model, rows
from expunge import metrics, tables
from expunge.benchmarks.benchmark import Answer, Benchmark, Measured
from expunge.benchmarks.records import METRICS, Outcome, UserRecords
from expunge.benchmarks.samples import samples
from expunge.collate import Encoding, encode
from expunge.errors import UsageError
from expunge.generation import generate
from expunge.inference import model_context
from expunge.record import Metric
from expunge.records import Records, read_records, swap_responses
from expunge.scoring import score
from expunge.tables import Tables, examine

SPLITS = ("forget", "retain", "holdout")
MEMBERSHIP = {"membership_loss_auc", "membership_min_k_auc"}


def world(person: bool = False) -> dict[str, Records]:
    """Three people to forget, three to keep, two never seen; two rows each."""
    out = {}
    for name, people in zip(SPLITS, (PEOPLE[:3], PEOPLE[3:6], PEOPLE[6:]), strict=True):
        found = [
            {**row, "person": next(p for p in people if p in row["prompt"])} if person else row
            for row in rows(people)
        ]
        out[name] = read_records(found, name=name)
    return out


@pytest.fixture(scope="module")
def sets() -> dict[str, Records]:
    return world()


@pytest.fixture(scope="module")
def knowing(sets: dict[str, Records], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Knows most of forget and retain."""
    model = build_model()
    known = [row for name in ("forget", "retain") for row in encode(sets[name], tokenizer)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = sum(
            model(
                input_ids=torch.tensor([row.input_ids]),
                labels=torch.tensor([(-100,) * row.prompt_length + row.labels]),
            ).loss
            for row in known
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@dataclass(frozen=True)
class Evaluated:
    tables: Tables
    measured: Measured
    outcomes: dict[str, list[Outcome]]

    @property
    def splits(self) -> Mapping[str, Mapping[str, Metric]]:
        return self.measured.splits


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sets: dict[str, Records],
    *,
    seed: int = 0,
    max_length: int | None = None,
    swaps: int = 3,
    group_field: str = "person",
    **settings: Any,
) -> Evaluated:
    benchmark = UserRecords(sets, Encoding(max_length=max_length), swaps, seed, group_field)
    assert isinstance(benchmark, Benchmark)
    tables = examine(model, tokenizer, benchmark.parts(tokenizer, model_context(model)), **settings)
    return Evaluated(tables, benchmark.measure(tables, None, seed), benchmark.outcomes(tables))


@pytest.fixture(scope="module")
def evaluated(
    knowing: LlamaForCausalLM, sets: dict[str, Records], tokenizer: PreTrainedTokenizerFast
) -> Evaluated:
    return evaluate(knowing, tokenizer, sets, seed=1)


def values(evaluated: Evaluated) -> dict[str, dict[str, float]]:
    return {s: {m: x.value for m, x in found.items()} for s, found in evaluated.splits.items()}


def naive(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, records: Records, seed: int
) -> dict[str, list[Any]]:
    """Every per-record quantity from its definition, one forward pass or one generation at a time."""
    out: dict[str, list[Any]] = {name: [] for name in (*METRICS, "min_k")}
    for record, swaps in zip(records, swap_responses(records, 3, seed), strict=True):
        (row,) = encode([record], tokenizer)
        (scores,) = score(model, [row], pad_id=0)
        others = [score(model, encode([replace(record, response=s)], tokenizer), pad_id=0)[0] for s in swaps]
        (answer,) = generate(model, [row], tokenizer=tokenizer)
        out["leak"].append(metrics.normalise(answer.text) == metrics.normalise(record.response))
        out["reproduced"].append(scores.matches.all())
        out["rouge_l_recall"].append(metrics.rouge_l_recall(answer.text, record.response))
        out["probability"].append(math.prod(np.exp(scores.log_probs)) ** (1 / len(scores.log_probs)))
        out["nll"].append(-sum(scores.log_probs) / len(scores.log_probs))
        ratio = math.prod(o.probability for o in others) ** (1 / 3) / scores.probability
        out["truth_ratio"].append(ratio / (1 + ratio))
        out["min_k"].append(np.mean(sorted(scores.log_probs)[: max(1, len(scores.log_probs) // 5)]))
    return out


def test_every_value_is_that_of_a_naive_scorer(
    evaluated: Evaluated,
    knowing: LlamaForCausalLM,
    sets: dict[str, Records],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    by_split = {name: naive(knowing, tokenizer, records, seed=1) for name, records in sets.items()}
    ours = values(evaluated)
    for name, columns in by_split.items():
        for metric in METRICS.keys() - MEMBERSHIP:
            assert ours[name][metric] == pytest.approx(np.mean(columns[metric]), abs=1e-5), (name, metric)
    forget, holdout = by_split["forget"], by_split["holdout"]
    truth = [1] * len(forget["nll"]) + [0] * len(holdout["nll"])
    loss = roc_auc_score(truth, [-x for x in forget["nll"] + holdout["nll"]])
    assert ours["forget"]["membership_loss_auc"] == pytest.approx(loss)
    min_k = roc_auc_score(truth, forget["min_k"] + holdout["min_k"])
    assert ours["forget"]["membership_min_k_auc"] == pytest.approx(min_k)


def test_a_model_that_knows_forget_shows_it(evaluated: Evaluated) -> None:
    ours = values(evaluated)
    assert ours["forget"]["leak"] > 0.5
    assert ours["holdout"]["leak"] == 0
    assert ours["forget"]["nll"] < ours["holdout"]["nll"] - 1
    assert ours["forget"]["truth_ratio"] < 0.3 < ours["holdout"]["truth_ratio"]
    assert ours["forget"]["membership_loss_auc"] > 0.9


def test_every_metric_that_is_named_is_measured(evaluated: Evaluated, sets: dict[str, Records]) -> None:
    splits = evaluated.splits
    assert set(splits["forget"]) == set(METRICS)
    assert set(splits["retain"]) == set(splits["holdout"]) == set(METRICS) - MEMBERSHIP
    for name, found in splits.items():
        for metric, measured in found.items():
            assert measured.low <= measured.value <= measured.high
            assert measured.n == (10 if metric in MEMBERSHIP else len(sets[name]))


def test_no_leak_in_four_records_leaves_room_for_one(evaluated: Evaluated) -> None:
    leak = evaluated.splits["holdout"]["leak"]
    assert (leak.value, leak.low) == (0, 0)
    assert leak.high == pytest.approx(1 - 0.025**0.25)


def test_outcomes_stand_in_the_order_of_the_records(
    evaluated: Evaluated,
    sets: dict[str, Records],
    knowing: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for name, records in sets.items():
        scores = score(knowing, encode(records, tokenizer), pad_id=0)
        found = evaluated.outcomes[name]
        assert [o.nll for o in found] == pytest.approx([s.nll for s in scores], abs=1e-5)
        assert [o.leaked for o in found] == [
            metrics.exact_match(o.generation, r.response) for o, r in zip(found, records, strict=True)
        ]


def test_the_work_done_is_counted(
    evaluated: Evaluated, sets: dict[str, Records], tokenizer: PreTrainedTokenizerFast
) -> None:
    own = sum(len(row.input_ids) for records in sets.values() for row in encode(records, tokenizer))
    assert evaluated.tables.scored_tokens > 3 * own
    assert evaluated.tables.generated_tokens >= len(PEOPLE) * 2
    assert evaluated.tables.seconds > 0


def test_one_scored_pass_and_one_generation_pass(
    knowing: LlamaForCausalLM,
    sets: dict[str, Records],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(tables, "score", lambda *a, **k: calls.append("score") or score(*a, **k))
    monkeypatch.setattr(tables, "generate", lambda *a, **k: calls.append("generate") or generate(*a, **k))
    evaluate(knowing, tokenizer, sets)
    assert calls == ["score", "generate"]


def test_the_same_seed_gives_the_same_numbers(
    evaluated: Evaluated,
    knowing: LlamaForCausalLM,
    sets: dict[str, Records],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    again = evaluate(knowing, tokenizer, sets, seed=1)
    assert again.splits == evaluated.splits
    other = evaluate(knowing, tokenizer, sets, seed=2, batch_tokens=100)
    assert other.splits["forget"]["nll"] != evaluated.splits["forget"]["nll"]
    assert values(other)["forget"]["nll"] == pytest.approx(values(evaluated)["forget"]["nll"], abs=1e-5)


def test_bf16_is_close(
    evaluated: Evaluated,
    knowing: LlamaForCausalLM,
    sets: dict[str, Records],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rough = values(evaluate(knowing, tokenizer, sets, seed=1, precision="bf16"))
    for name, found in values(evaluated).items():
        assert rough[name]["nll"] == pytest.approx(found["nll"], abs=0.1)
        assert rough[name]["nll"] != found["nll"]


# --- what cannot be measured


def test_a_missing_split_is_absent(
    knowing: LlamaForCausalLM, sets: dict[str, Records], tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = evaluate(knowing, tokenizer, {"forget": sets["forget"]}, swaps=0)
    assert set(alone.splits) == {"forget"}
    assert set(alone.splits["forget"]) == set(METRICS) - MEMBERSHIP - {"truth_ratio"}
    assert all(math.isnan(outcome.truth_ratio) for outcome in alone.outcomes["forget"])
    assert set(evaluate(knowing, tokenizer, {"holdout": sets["holdout"]}).splits) == {"holdout"}


def test_a_single_record_has_nothing_to_swap(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    one = read_records(rows()[:1], name="retain")
    found = evaluate(model, tokenizer, {"retain": one}).splits["retain"]
    assert "truth_ratio" not in found
    assert found["nll"].n == 1


def test_rouge_is_absent_where_it_sees_no_words(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    russian = read_records([{"prompt": "Кто это?", "response": "Ада"}, rows()[0]], name="forget")
    found = evaluate(model, tokenizer, {"forget": russian}).splits["forget"]
    assert (found["rouge_l_recall"].n, found["leak"].n) == (1, 2)


def test_a_collapsed_model_is_measured_too(
    model: LlamaForCausalLM, sets: dict[str, Records], tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    found = evaluate(model, tokenizer, sets).splits["forget"]
    assert math.isnan(found["nll"].value)
    assert math.isnan(found["membership_loss_auc"].value)
    assert found["leak"].value == 0


# --- groups, truncation, context


def test_records_of_one_person_count_as_one(
    evaluated: Evaluated, knowing: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    grouped = evaluate(knowing, tokenizer, world(person=True), seed=1)
    assert values(grouped) == values(evaluated)
    assert {outcome.group for outcome in grouped.outcomes["forget"]} == set(PEOPLE[:3])
    by_person, by_record = (e.splits["retain"]["nll"] for e in (grouped, evaluated))
    assert (by_person.low, by_person.high) != (by_record.low, by_record.high)
    leak = grouped.splits["holdout"]["leak"]
    assert leak.high == pytest.approx(1 - 0.025 ** (1 / leak.n)), "none of so many records"
    elsewhere = evaluate(knowing, tokenizer, world(person=True), seed=1, group_field="city")
    assert elsewhere.splits == evaluated.splits


def test_a_cut_response_leaks_as_far_as_it_goes(
    knowing: LlamaForCausalLM,
    sets: dict[str, Records],
    tokenizer: PreTrainedTokenizerFast,
    evaluated: Evaluated,
) -> None:
    uncut = encode(sets["forget"], tokenizer)
    longest = max(len(row.input_ids) for row in uncut) - 2
    cut = evaluate(knowing, tokenizer, sets, seed=1, max_length=longest)
    shortened = [i for i, row in enumerate(uncut) if len(row.input_ids) > longest]
    whole = [i for i in shortened if evaluated.outcomes["forget"][i].leaked]
    assert whole, "some cut response must have leaked whole"
    for i in whole:
        assert cut.outcomes["forget"][i].leaked
        assert len(cut.outcomes["forget"][i].generation) < len(sets["forget"][i].response)


def test_a_record_beyond_the_context_is_refused_and_a_swapped_one_is_cut(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = {"prompt": "Who?", "response": "x1 " * 35}
    short = {"prompt": "Who is it that has a prompt of many words, " * 3 + "?", "response": "Ada"}
    fine = read_records([long, short], name="forget")
    lengths = [len(row.input_ids) for row in encode(fine, tokenizer)]
    assert max(lengths) <= 128 < sum(lengths)
    assert len(evaluate(model, tokenizer, {"forget": fine}).outcomes["forget"]) == 2
    with pytest.raises(UsageError, match=r"row 1.*context of 128"):
        evaluate(
            model, tokenizer, {"forget": read_records([{**long, "response": "x1 " * 200}], name="forget")}
        )


# --- samples


def fake(leaks: dict[str, list[bool]], text: str) -> Measured:
    def answer(leaked: bool, row: int) -> Answer:
        return Answer(f"p{row}", f"r{row}", f"{text} {row}", float(row), leaked)

    return Measured({}, {s: [answer(x, i) for i, x in enumerate(found)] for s, found in leaks.items()})


SETS = ("forget", "retain")


def test_samples_show_failures_first_then_an_even_spread() -> None:
    before = fake({name: [True] * 20 for name in SETS}, "before")
    leaks = [i in (7, 8, 9) for i in range(20)]
    kept = [i != 13 for i in range(20)]
    after = fake({"forget": leaks, "retain": kept}, "after")
    shown = samples({"before": before, "after": after}, limit=6)
    forget = [int(s.prompt[1:]) for s in shown if s.split == "forget"]
    retain = [int(s.prompt[1:]) for s in shown if s.split == "retain"]
    assert forget == [0, 7, 8, 9, 11, 19], "three leaks, and three of the other seventeen"
    assert 13 in retain
    assert len(retain) == 3


def test_a_sample_says_what_each_model_said() -> None:
    control = fake({"forget": [False] * 20}, "control")
    after = fake({"forget": [True] + [False] * 19, "retain": [True] * 20}, "after")
    first = samples({"after": after, "control": control}, limit=2)[0]
    assert (first.split, first.prompt, first.response) == ("forget", "p0", "r0")
    assert first.generations == {"after": "after 0", "control": "control 0"}
    assert first.leaked == {"after": True, "control": False}
    assert first.nll == {"after": 0.0, "control": 0.0}


@pytest.mark.parametrize("limit", [1, 5, 20, 100])
def test_samples_are_distinct_and_limited(limit: int) -> None:
    shown = samples({"before": fake({"forget": [True] * 20}, "b")}, limit=limit)
    forget = [s.prompt for s in shown if s.split == "forget"]
    assert len(set(forget)) == len(forget) == min(limit, 20)


def test_samples_of_a_real_evaluation_fit_the_record(evaluated: Evaluated) -> None:
    shown = samples({"before": evaluated.measured})
    assert len(shown) == 16
    assert sum(s.leaked["before"] for s in shown) == sum(
        outcome.leaked for found in evaluated.outcomes.values() for outcome in found
    )
    assert Metric.model_validate_json(evaluated.splits["forget"]["leak"].model_dump_json()).n == 6
