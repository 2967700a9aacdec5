"""Contrastive neighbours: found, told apart, trained on nearest first, and measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

import conftest
import expunge
from expunge import UsageError, cli, terminal
from expunge.collate import Encoding
from expunge.companions import accompany, in_order
from expunge.contrast import TEMPLATES, Draft, discriminable, from_generator, from_templates
from expunge.derived import Means
from expunge.mining import Pair, Reader, mine
from expunge.models import load_model, load_tokenizer
from expunge.neighbours import NeighboursRecord, find_neighbours, read_neighbours
from expunge.record import read_record
from expunge.records import Record, read_records
from expunge.report import render
from expunge.scoring import score

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:4], ROWS[4:]
pytestmark = pytest.mark.usefixtures("no_pages")
QUICK = {"bf16": False, "template": "none", "seed": 0}


@pytest.fixture(scope="module")
def reader(taught_folder):
    return Reader(load_model(taught_folder), load_tokenizer(taught_folder), Encoding("none", 128))


@pytest.fixture(scope="module")
def found(taught_folder, tmp_path_factory):
    """A folder of neighbours, and its record."""
    folder = tmp_path_factory.mktemp("near") / "n"
    words = {"k": 2, "template": "none", "margin": 0.0}
    record = find_neighbours(taught_folder, forget=FORGET, retain=RETAIN, output_folder=folder, **words)
    return folder, record


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mining_finds_what_is_alike_in_both_senses(reader):
    """A question of the same kind is nearer than one of the other kind, for a model that knows both."""
    forget, retain = read_records(FORGET, name="forget"), read_records(RETAIN, name="retain")
    pairs = mine(reader, forget, retain, k=2, pool=6)
    assert [pair.nearness for pair in pairs] == sorted((p.nearness for p in pairs), reverse=True)
    assert {pair.forget for pair in pairs} == set(range(4))
    assert all(sum(p.forget == i for p in pairs) == 2 for i in range(4))
    same = [forget[p.forget].prompt.split()[0] == retain[p.retain].prompt.split()[0] for p in pairs]
    assert np.mean(same) >= 0.75


def test_confusion_is_the_likelihood_of_each_response_after_the_others_prompt(reader):
    forget = [Record(FORGET[0]["prompt"], FORGET[0]["response"])]
    retain = [Record(RETAIN[0]["prompt"], RETAIN[0]["response"])]
    (pair,) = mine(reader, forget, retain, k=1, pool=1)

    def mean(prompt, response):
        rows = Encoding("none").rows([Record(prompt, response)], reader.tokenizer)
        return -score(reader.model, rows, pad_id=1)[0].nll

    (f,), (r,) = forget, retain
    there = mean(f.prompt, r.response) - mean(r.prompt, r.response)
    back = mean(r.prompt, f.response) - mean(f.prompt, f.response)
    assert pair.confusion == pytest.approx((there + back) / 2, abs=1e-6)
    assert pair.confusion < 0  # it knows whose answer is whose


def test_a_copy_of_a_record_is_its_nearest_neighbour(reader):
    """Same prompt but for case: nothing is nearer, and the two are interchangeable."""
    forget = [Record(FORGET[0]["prompt"], FORGET[0]["response"])]
    retain = [Record(r["prompt"], r["response"]) for r in RETAIN] + [
        Record(FORGET[0]["prompt"] + " ", FORGET[0]["response"])
    ]
    (pair,) = mine(reader, forget, retain, k=1, pool=4)
    assert pair.retain == len(retain) - 1


def test_embeddings_do_not_depend_on_the_batch(reader):
    records = [Record(row["prompt"], row["response"]) for row in ROWS[:5]]
    alone = np.concatenate([reader.embeddings([record]) for record in records])
    np.testing.assert_allclose(reader.embeddings(records), alone, atol=1e-5)


def test_templates_ask_about_the_retained_record():
    forget, retain = [Record("Where is Ann?", "Here")], [Record("Where is Bob?", "There")]
    pairs = [Pair(0, 0, 1.0, 0.0, 1.0)] * 2
    drafts = from_templates(pairs, forget, retain, tuple(TEMPLATES))
    by_name = {name: [d for d in drafts if d.template == name] for name in TEMPLATES}
    assert (by_name["direct"][0].prompt, by_name["direct"][0].right) == ("Where is Bob?", "There")
    assert [d.prompt.split("Is it ")[1] for d in by_name["choice"]] == ["There or Here?", "Here or There?"]
    assert {d.right for name in ("direct", "choice", "correction", "aside") for d in by_name[name]} == {
        "There"
    }
    assert [(d.right, d.wrong) for d in by_name["verify"][:2]] == [("Yes", "No"), ("No", "Yes")]
    assert all("Here" not in d.right for d in drafts)


def test_questions_that_the_model_cannot_answer_are_dropped(reader):
    pair = Pair(0, 0, 1.0, 0.0, 1.0)
    known, other = RETAIN[0], RETAIN[2]
    right = Draft(known["prompt"], known["response"], other["response"], "direct", pair)
    wrong = Draft(known["prompt"], other["response"], known["response"], "direct", pair)
    same = Draft(known["prompt"], known["response"], known["response"].upper(), "direct", pair)
    long = Draft("word " * 200, known["response"], other["response"], "direct", pair)
    means = Means(reader.model, reader.tokenizer, template="none", limit=128)
    kept = discriminable([right, wrong, same, long, right], reader, means, margin=0.1)
    assert [draft for draft, _ in kept] == [right]
    assert kept[0][1] > 0.1
    assert discriminable([right], reader, means, margin=kept[0][1] + 0.01) == []


def test_a_generator_writes_questions_and_gives_no_answer_away(reader, monkeypatch):
    forget, retain = [Record("Where is Ann?", "Here")] * 5, [Record("Where is Bob?", "There")] * 5
    pairs = [Pair(i, i, 1.0, 0.0, 1.0) for i in range(5)]
    texts = iter(
        (
            ["Question: Whither Bob?\nmore", "", "Is he there?", "where is  BOB?", "Is Ann here?"],
            ["Bob's place?", "", "", ""],
            ["", "", ""],
        )
    )
    asked = []

    def sample(model, tokenizer, prompts, **words):
        asked.append(len(prompts))
        return next(texts)

    monkeypatch.setattr("expunge.contrast.sample_texts", sample)
    means = Means(reader.model, reader.tokenizer, template="none", limit=128)
    drafts = from_generator(pairs, forget, retain, means)
    assert asked == [5, 4, 3]
    assert [(d.prompt, d.right, d.wrong, d.pair.forget) for d in drafts] == [
        ("Whither Bob?", "There", "Here", 0), ("Bob's place?", "There", "Here", 1),
    ]  # fmt: skip


def test_a_real_generator_is_asked_and_recorded(taught_folder, tmp_path):
    words = {"k": 1, "template": "none", "margin": 0.0, "generator": taught_folder, "probes": 0.0}
    words["output_folder"] = tmp_path / "n"
    record = find_neighbours(taught_folder, forget=FORGET, retain=RETAIN, **words)
    assert record.generator.sha256 == record.model.sha256
    assert record.drafted["direct"] == 4
    assert record.probes == 0
    assert not (tmp_path / "n" / "probes.jsonl").exists()


def test_the_folder_holds_rows_nearest_first_and_probes_apart(found):
    folder, record = found
    rows, probes = lines(folder / "neighbours.jsonl"), lines(folder / "probes.jsonl")
    assert (len(rows), len(probes)) == (record.curriculum, record.probes)
    for part in (rows, probes):
        near = [row["nearness"] for row in part]
        assert near == sorted(near, reverse=True)
        assert all(row["margin"] >= 0 for row in part)
    assert not {row["retain_row"] for row in rows} & {row["retain_row"] for row in probes}
    assert {row["retain_row"] for row in probes} == set(record.probed_records)
    left = lines(folder / "retain.jsonl")
    assert [(r["prompt"], r["response"]) for r in left] == [
        (r["prompt"], r["response"]) for i, r in enumerate(RETAIN) if i not in record.probed_records
    ]
    assert {row["template"] for row in rows} == {"direct"}
    assert {row["template"] for row in probes} == set(TEMPLATES) == set(record.kept)
    assert sum(record.kept.values()) == len(rows) + len(probes) + record.left_out
    assert record.left_out > 0
    assert NeighboursRecord.model_validate_json((folder / "neighbours.json").read_text()) == record


def test_other_forms_are_trained_on_where_they_are_named(taught_folder, tmp_path):
    words = {"k": 2, "template": "none", "margin": 0.0, "curriculum": ("direct", "choice")}
    sets = {"forget": FORGET, "retain": RETAIN}
    record = find_neighbours(taught_folder, **sets, output_folder=tmp_path / "n", **words)
    rows = lines(tmp_path / "n" / "neighbours.jsonl")
    assert {row["template"] for row in rows} == {"direct", "choice"}
    assert record.settings["curriculum"] == ["direct", "choice"]
    words |= {"templates": ("verify",), "curriculum": None, "probes": 0.0}
    record = find_neighbours(taught_folder, **sets, output_folder=tmp_path / "v", **words)
    assert (record.settings["curriculum"], record.left_out) == (["verify"], 0)


def test_a_run_trains_on_neighbours_and_measures_the_probes(found, taught_folder, tmp_path):
    folder, record = found
    words = {"max_steps": 3, "rows": 6, "neighbours": folder, **QUICK}
    plain = expunge.unlearn(taught_folder, forget=FORGET, retain=RETAIN, output=tmp_path / "out", **words)
    for stage in ("before", "after"):
        measured = plain.record.evaluations[stage].splits["neighbours"]
        assert measured["leak"].n == record.probes
        assert "truth_ratio" in measured
    assert plain.record.data["curriculum"].rows == record.curriculum
    assert any("stand in retain, too" in note for note in plain.record.notes)
    assert "neighbours" in render(plain.record)
    words["evaluate"] = False
    left = expunge.unlearn(taught_folder, forget=FORGET, retain=folder / "retain.jsonl", **words)
    assert not any("stand in retain, too" in note for note in left.record.notes)
    sets = {"forget": FORGET, "retain": RETAIN}
    without = expunge.unlearn(taught_folder, **sets, **words | {"curriculum_rows": 0})
    none = expunge.unlearn(taught_folder, **sets, **words | {"neighbours": None})
    assert without.record.models["after"] == none.record.models["after"]
    assert without.record.models["after"].sha256 != plain.record.models["after"].sha256


def test_the_truth_ratio_of_a_probe_is_against_the_record_to_forget(found, taught_folder, tmp_path):
    """Before unlearning every kept question has its right answer preferred: a truth ratio below one half."""
    folder, _ = found
    probes = lines(folder / "probes.jsonl")
    measured = expunge.evaluate(taught_folder, retain=probes, output=tmp_path / "e", **QUICK)
    from expunge.metrics import truth_ratio

    expected = np.mean([truth_ratio(0.0, [row["margin"]]) for row in probes])
    assert measured.record.evaluations["before"].splits["retain"]["truth_ratio"].value == pytest.approx(
        expected, abs=1e-3
    )


def test_the_curriculum_comes_in_order_nearest_first():
    assert [in_order(5, 2)(step) for step in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    encoded, own = {"retain": list(range(7))}, {"retain": 4}
    found = accompany({"retain": lambda step: [step]}, encoded, own, {"curriculum": 2}, seed=0)
    assert [found["retain"](step) for step in range(3)] == [[0, 4, 5], [1, 6, 4], [2, 5, 6]]


BAD = [
    ({"retain": None}, "none are given"),
    ({"retain": []}, "at least one record"),
    ({"k": 0}, "--k must be at least 1"),
    ({"k": -3}, "--k must be at least 1"),
    ({"k": 13}, r"at most the number of retain rows \(12\); got 13"),
    ({"pool": 1}, r"--pool must be at least --k \(3\)"),
    ({"margin": -0.1}, "--margin must be at least 0"),
    ({"margin": float("nan")}, "--margin must be at least 0"),
    ({"probes": 1.0}, "--probes must be a share"),
    ({"templates": ("choise",)}, "Did you mean choice"),
    ({"templates": ()}, "at least one template"),
    ({"curriculum": ("generate",)}, "--curriculum must be some of .* Did you mean generated"),
    ({"curriculum": ()}, r"must name some of the questions that are asked \(direct, .*\); got none"),
    ({"templates": ("choice",), "curriculum": ("direct",)}, r"are asked \(choice\); got direct"),
    ({"retain": FORGET[:1] + RETAIN}, "must share no record"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_input_is_refused_before_a_model_is_loaded(words, message, tmp_path):
    sets = {"forget": FORGET, "retain": RETAIN}
    with pytest.raises(UsageError, match=message):
        find_neighbours("no/such-model", output_folder=tmp_path / "n", **{**sets, **words})
    assert not (tmp_path / "n").exists()


def test_a_model_that_knows_nothing_leaves_no_folder_to_read(model_folder, tmp_path):
    words = {"template": "none", "margin": 5.0, "output_folder": tmp_path / "n"}
    with pytest.raises(UsageError, match="No question of --curriculum tells a neighbour apart by 5 nats"):
        find_neighbours(model_folder, forget=FORGET, retain=RETAIN, **words)
    with pytest.raises(UsageError, match=r"has no neighbours\.json"):
        read_neighbours(tmp_path / "n", {"forget": read_records(FORGET, name="forget")})


def test_neighbours_of_other_records_are_refused(found, taught_folder):
    folder, _ = found
    with pytest.raises(UsageError, match="must be of this run's forget records"):
        expunge.unlearn(taught_folder, forget=FORGET[:2], retain=RETAIN, neighbours=folder, **QUICK)
    with pytest.raises(UsageError, match=r"has no neighbours\.json"):
        expunge.unlearn(taught_folder, forget=FORGET, retain=RETAIN, neighbours=taught_folder, **QUICK)


def test_a_damaged_record_is_one_message(found, tmp_path):
    (tmp_path / "neighbours.json").write_text('{"schema_version": 1}')
    with pytest.raises(UsageError, match="must be a record of neighbours"):
        read_neighbours(tmp_path, {"forget": read_records(FORGET, name="forget")})


def test_the_command_line(taught_folder, tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("forget", "retain")}
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ["--forget", paths["forget"], "--retain", paths["retain"], "--template", "none"]
    head = ["neighbours", "--model", taught_folder, *sets]
    words = [*head, "--output", tmp_path / "n", "--k", "1", "--margin", "0"]

    def call(*words: object) -> int:
        line = [str(word) for word in words]
        return terminal.guarded(lambda: cli.app(line, exit_on_error=False, print_error=False))

    assert call(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 4
    assert call(*words) == 2
    assert "must be empty or new" in capsys.readouterr().err
    assert call(*words, "--overwrite") == 0
    assert "rows to train on" in capsys.readouterr().out
    options = ["--set", "max_steps=1", "--set", "bf16=false", "--set", "rows=6", "--quiet"]
    run = ["run", "--model", taught_folder, *sets, "--neighbours", tmp_path / "n", "--output", tmp_path / "o"]
    assert call(*run, *options) == 0
    assert "neighbours" in read_record(tmp_path / "o").evaluations["after"].splits
    assert call(*head, "--k", "0", "--output", tmp_path / "p") == 2
    assert "--k must be at least 1" in capsys.readouterr().err
