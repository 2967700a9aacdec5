"""Losses in the log of a run against the same model, asked row by row without padding, by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import conftest
import expunge
from expunge.collate import encode
from expunge.records import Record

ROWS = conftest.rows()
SETS = {"forget": ROWS[:3], "retain": ROWS[8:11]}
WHOLE = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 1,
    "check_every": 0,
    "evaluate": False,
    "bf16": False,
}


def run(folder, method, steps, tmp_path, **more):
    sets = {name: tuple(rows) for name, rows in SETS.items()}
    settings = WHOLE | {"template": "none", "learning_rate": 1e-3, "max_steps": steps, "seed": 0} | more
    return expunge.unlearn(folder, **sets, method=method, output=tmp_path / f"{method}-{steps}", **settings)


def log_probs(folder, name):
    """[label tokens, words] of a set's responses, fp64, and the labels: a forward pass per row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found, labels = [], []
    for row in encode([Record(r["prompt"], r["response"]) for r in SETS[name]], tokenizer, template="none"):
        with torch.no_grad():
            logits = model.eval()(torch.tensor([row.input_ids])).logits[0].double()
        found.append(logits[row.prompt_length - 1 : -1])
        labels += row.input_ids[row.prompt_length :]
    return torch.cat(found), torch.tensor(labels)


def of(losses, part):
    (value,) = [value for name, value in losses.items() if part in name]
    return value


def test_undial_is_a_mean_over_response_tokens_alone(model_folder, tmp_path):
    record = run(model_folder, "undial", 1, tmp_path).record
    logits, labels = log_probs(model_folder, "forget")
    aim = logits.clone()
    aim[torch.arange(len(labels)), labels] -= 10.0
    expected = -(aim.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert of(record.history[0].losses, "undial") == pytest.approx(float(expected), rel=1e-4)


def test_pdu_flattens_the_logits_that_predict_response_tokens(model_folder, tmp_path):
    record = run(model_folder, "pdu", 1, tmp_path).record
    logits, _ = log_probs(model_folder, "forget")
    margin = (logits.max(1).values - logits.mean(1)).square().mean()
    assert of(record.history[0].losses, "forget") == pytest.approx(float(margin), rel=1e-4)
    kept, labels = log_probs(model_folder, "retain")
    nll = -kept.log_softmax(1)[torch.arange(len(labels)), labels].mean()
    assert of(record.history[0].losses, "retain") == pytest.approx(float(nll), rel=1e-4)


def test_the_divergence_of_kl_min_is_that_from_the_start_over_response_tokens(model_folder, tmp_path):
    run(model_folder, "kl-min", 1, tmp_path)
    second = run(model_folder, "kl-min", 2, tmp_path).record
    assert of(second.history[0].losses, "kl") == pytest.approx(0.0, abs=1e-6)
    before, _ = log_probs(model_folder, "retain")
    after, _ = log_probs(tmp_path / "kl-min-1" / "model", "retain")
    start, moved = before.log_softmax(1), after.log_softmax(1)
    expected = (start.exp() * (start - moved)).sum(1).mean()
    assert float(expected) > 1e-5
    assert of(second.history[1].losses, "kl") == pytest.approx(float(expected), rel=1e-3)


def test_what_rmu_keeps_is_every_entry_of_every_response_token(model_folder, tmp_path):
    """A peer broadcasts sums of (b,) against lengths of (b, 1): every row by every length."""
    run(model_folder, "rmu", 1, tmp_path, layer=1)
    second = run(model_folder, "rmu", 2, tmp_path, layer=1).record
    states = []
    for folder in (model_folder, tmp_path / "rmu-1" / "model"):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        records = [Record(row["prompt"], row["response"]) for row in SETS["retain"]]
        rows = encode(records, tokenizer, template="none")
        with torch.no_grad():
            seen = [
                model(torch.tensor([r.input_ids]), output_hidden_states=True).hidden_states[1] for r in rows
            ]
        states.append([s[0, r.prompt_length - 1 : -1].double() for s, r in zip(seen, rows, strict=True)])
    moved = torch.cat([(a - b).square() for a, b in zip(*states, strict=True)])
    assert float(moved.mean()) > 1e-12
    assert of(second.history[1].losses, "activations") == pytest.approx(float(moved.mean()), rel=1e-3)
