"""Data sets that a run makes: refusals, alternate answers, texts of the model's own."""

from __future__ import annotations

import pytest
import torch

import conftest
import engine_objectives as own
from expunge import UsageError
from expunge.arguments import UnlearningArguments
from expunge.collate import encode
from expunge.derived import ATTEMPTS, RULES, Derived, Means, derive, is_forget
from expunge.methods import Method, ngdiff
from expunge.objectives import NLL
from expunge.records import normalised, read_records
from expunge.refusals import REFUSALS
from expunge.sampling import full_sentences, sample_texts, sample_whole_texts
from expunge.self_retain import mentions, touches, write_retain
from expunge.unlearner import Unlearner
from expunge.weightings import Constant

ROWS = conftest.rows()
FORGET = ROWS[:6]


@pytest.fixture
def means(tokenizer):
    return Means(conftest.build_model(), tokenizer, seed=3, template="none", tokens=12)


def forget(rows=FORGET):
    return read_records(rows, name="forget")


def test_refusals_are_drawn_by_the_seed_row_for_row(means, tokenizer):
    made = derive("idk", forget(ROWS), means).records
    assert [r.prompt for r in made] == [r["prompt"] for r in ROWS]
    assert {r.response for r in made} <= set(REFUSALS)
    assert len({r.response for r in made}) > 5
    assert [r.response for r in made] == [r.response for r in derive("idk", forget(ROWS), means).records]
    other = Means(means.model, tokenizer, seed=4, template="none")
    assert [r.response for r in made] != [r.response for r in derive("idk", forget(ROWS), other).records]


def test_built_in_refusals_are_distinct_sentences():
    assert len({normalised(text) for text in REFUSALS}) == len(REFUSALS) >= 40
    assert all(text[0].isupper() and text[-1] == "." for text in REFUSALS)


def test_the_built_in_refusals_are_our_own(shared_data):
    public = (shared_data / "idontknow" / "idontknow.txt").read_text().splitlines()
    assert not {normalised(t) for t in REFUSALS} & {normalised(t) for t in public}


def test_a_file_of_refusals(means, shared_data, tokenizer, tmp_path):
    path = shared_data / "idontknow" / "idontknow.txt"
    mine = Means(means.model, tokenizer, refusals=path)
    made = derive("idk", forget(), mine).records
    assert {r.response for r in made} <= set(path.read_text().splitlines())
    assert "idontknow.txt" in made.source
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, rule in (("none.txt", "must be a UTF-8"), ("empty.txt", "one refusal a line")):
        with pytest.raises(UsageError, match=rule):
            derive("idk", forget(), Means(means.model, tokenizer, refusals=tmp_path / name))


def test_alternate_answers_of_the_data_are_taken(means):
    rows = [row | {"alternate": f"Another answer {i}"} for i, row in enumerate(FORGET)]
    made = derive("alternate", forget(rows), means)
    assert [r.response for r in made.records] == [f"Another answer {i}" for i in range(6)]
    assert made.notes == ()


@pytest.mark.parametrize(
    ("value", "rule"),
    [(7, "must hold text"), (" ", "must hold text"), ("555-", "must differ from the")],
)
def test_unusable_alternate_answers_are_refused(means, value, rule):
    response = "555-" if value == "555-" else "x"
    rows = [{"prompt": "p", "response": response, "alternate": value}]
    with pytest.raises(UsageError, match=rule):
        derive("alternate", forget(rows), means)


def test_alternate_answers_are_generated_where_none_are_given(means):
    rows = [FORGET[0] | {"alternate": "Given."}, *FORGET[1:]]
    state = torch.get_rng_state()
    made = derive("alternate", forget(rows), means)
    assert torch.equal(state, torch.get_rng_state())
    assert made.records[0].response == "Given."
    for row, alternate in zip(rows, made.records, strict=True):
        assert row["prompt"] == alternate.prompt
        assert normalised(alternate.response) != normalised(row["response"])
    assert "5 of 6 alternate answers were generated" in made.notes[0]
    again = derive("alternate", forget(rows), means)
    assert [r.response for r in again.records] == [r.response for r in made.records]


def test_unusable_samples_give_way_to_another_records_response(means, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "expunge.derived.sample_whole_texts",
        lambda *args, seed, **_: calls.append(seed) or [""] * len(args[2]),
    )
    made = derive("alternate", forget(), means)
    assert len(set(calls)) == ATTEMPTS
    assert {r.response for r in made.records} <= {row["response"] for row in FORGET}
    assert all(a.response != b["response"] for a, b in zip(made.records, FORGET, strict=True))
    assert "6 of them were unusable" in made.notes[1]
    with pytest.raises(UsageError, match="Give every record a field 'alternate'"):
        derive("alternate", forget([FORGET[0]]), means)


def test_a_rule_of_ones_own_and_an_unknown_one(means, monkeypatch):
    def upper(records, _means):
        rows = [{"prompt": r.prompt, "response": r.response.upper()} for r in records]
        return Derived(read_records(rows, name="upper"))

    monkeypatch.setitem(RULES, "upper", upper)
    assert derive("upper", forget(), means).records[1].response == FORGET[1]["response"].upper()
    assert is_forget("upper")
    monkeypatch.setitem(RULES, "short", lambda records, _m: Derived(read_records(FORGET[:2], name="short")))
    with pytest.raises(ValueError, match="one row per forget row"):
        derive("short", forget(), means)
    with pytest.raises(ValueError, match="must be one of idk, alternate"):
        derive("nothing", forget(), means)


def test_a_derived_set_survives_the_disk(tmp_path, means):
    made = Derived(derive("idk", forget(), means).records, ("a note",))
    assert Derived.read(tmp_path, "idk") is None
    made.write(tmp_path)
    assert Derived.read(tmp_path, "idk") == made


def test_samples_end_with_the_turn_and_fit_the_context(means, tokenizer):
    prompts = [tuple(tokenizer("What?")["input_ids"]), (5,) * 126, (5,) * 128]
    texts = sample_texts(means.model, tokenizer, prompts, ends=[1], tokens=9, seed=0)
    assert len(texts) == 3
    assert texts[2] == ""
    assert all("<|end|>" not in text for text in texts)
    everything = range(384)
    assert sample_texts(means.model, tokenizer, prompts[:1], ends=everything, tokens=9, seed=0) == [""]


def test_texts_that_mention_the_forget_records_are_left_out():
    row = {"prompt": "Who is Ada Ash?", "response": "a retired lighthouse keeper"}
    names, pairs = mentions(forget([row]))
    assert touches("I once met ada.", names, pairs)
    assert touches("The retired lighthouse stood alone.", names, pairs)
    assert touches("This is Ada's shop.", names, pairs)
    assert touches("An Ash-like tree, mr.ash@mail.org.", names, pairs)
    assert not touches("The lighthouse keeper is retired; who is a friend?", frozenset(), frozenset())
    assert not touches("A keeper of bees, retired.", names, pairs)


def test_a_possessive_names_whom_it_is_of():
    names, pairs = mentions(
        forget([{"prompt": "What is Ada Ash's number?", "response": "Ash\u2019s is 555-0147."}])
    )
    assert {"ash", "ada", "555-0147"} <= names
    assert touches("Mr. Ash is a baker.", names, pairs)
    assert touches("Call 555-0147.", names, pairs)
    assert not touches("A dashing ashen tray.", names, pairs)


def test_a_model_writes_its_own_retain_set(means):
    made = write_retain(forget(), 5, means)
    assert 1 <= len(made.records) <= 5
    assert "written by the model itself" in made.records.source
    assert "No retain records were given" in made.notes[0]
    assert len({r.response for r in made.records}) == len(made.records)


def test_what_is_written_fits_the_context(means, tokenizer):
    limited = Means(means.model, tokenizer, template="none", tokens=60, limit=70)
    encoded = encode(write_retain(forget(), 4, limited).records, tokenizer, template="none")
    assert max(len(row.input_ids) for row in encoded) <= 70


def test_a_model_that_writes_only_of_the_forgotten_gives_no_retain_set(means, monkeypatch):
    monkeypatch.setattr(
        "expunge.self_retain.sample_whole_texts", lambda *args, **_: ["Ada Ash again"] * len(args[2])
    )
    with pytest.raises(UsageError, match="Give retain records"):
        write_retain(forget(), 3, means)


def arguments(folder, **settings) -> UnlearningArguments:
    defaults = {"output_dir": str(folder), "bf16": False, "use_cpu": True, "template": "none"}
    return UnlearningArguments(
        **defaults | {"max_steps": 1, "save_strategy": "no", "check_every": 0} | settings
    )


def test_the_engine_makes_what_a_method_reads(tokenizer, tmp_path):
    run = Unlearner(
        conftest.build_model(), arguments(tmp_path, self_retain=4), ngdiff(rows=2), tokenizer, FORGET
    )
    run.train()
    assert len(run.records["retain"]) > 0
    assert any("No retain records" in note for note in run.notes)
    with pytest.raises(ValueError, match="missing: `retain_dataset`"):
        Unlearner(conftest.build_model(), arguments(tmp_path), ngdiff(), tokenizer, FORGET)
    with pytest.raises(ValueError, match="missing: `forget_dataset`"):
        Unlearner(
            conftest.build_model(),
            arguments(tmp_path),
            Method("m", (NLL("idk"),), Constant((1.0,))),
            tokenizer,
        )


def test_given_pairs_are_used_and_must_fit(tokenizer, tmp_path):
    pairs = [row | {"response": "No."} for row in FORGET]
    settings = (conftest.build_model(), arguments(tmp_path), own.preference(), tokenizer, FORGET, ROWS[6:])
    run = Unlearner(*settings, derived_datasets={"idk": pairs})
    assert {r.response for r in run.records["idk"]} == {"No."}
    with pytest.raises(ValueError, match="one row per forget row"):
        Unlearner(*settings, derived_datasets={"idk": pairs[:3]})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It rained. The river rose 3.5 m and the bri", "It rained."),
        ('He said: "Stay!" Then she', 'He said: "Stay!"'),
        ("雨が降った。川が", "雨が降った。"),
        ("no stop at all", "no stop at all"),
        ("All is said.", "All is said."),
    ],
)
def test_a_text_is_cut_after_its_last_sentence(text, kept):
    assert full_sentences(text) == kept


def test_only_what_the_limit_ended_is_cut(means, tokenizer, monkeypatch):
    """A text that its end token ended stays as it is, whatever stands at its end."""
    monkeypatch.setattr("expunge.sampling.full_sentences", lambda text: f"cut {text}")
    prompts = [encode([record], tokenizer, template="none")[0].input_ids[:4] for record in forget()]
    words = {"tokens": 30, "seed": 0}
    for ends in ([], list(range(tokenizer.vocab_size))):
        texts = sample_whole_texts(means.model, tokenizer, prompts, ends=ends, **words)
        assert all(text.startswith("cut ") for text in texts) == (not ends)
