"""Attacks from within bring back what a model merely hides, and nothing that it never knew."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import attack_contract as contract
import latent_models as models
from expunge.attacks.activations.lens import LogitLens, readings
from expunge.attacks.activations.patching import ActivationPatching
from expunge.attacks.activations.probe import LinearProbe
from expunge.attacks.activations.refusal import RefusalAblation
from expunge.attacks.activations.stream import changed, final_norm, response_states, shown
from expunge.attacks.attack import Clock, Probes, Setting
from expunge.attacks.plain import Prompt
from expunge.errors import UsageError
from expunge.scoring import score

ATTACKS: list[Any] = [LogitLens(), LinearProbe(), ActivationPatching(), RefusalAblation()]
# The probe must name a token from few examples; the ablated direction holds something of the records too.
HIDING: list[tuple[Any, Callable[[], LlamaForCausalLM], int]] = [
    (LogitLens(), models.biased, 8),
    (LogitLens(), models.drowned, 8),
    (LinearProbe(), models.biased, 4),
    (LinearProbe(), models.drowned, 4),
    (ActivationPatching(), models.refusing, 8),
    (RefusalAblation(), models.refusing, 5),
]


def named(case: Any) -> str:
    return getattr(case, "name", getattr(case, "__name__", ""))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(("attack", "hiding", "least"), HIDING, ids=named)
def test_what_is_hidden_comes_back(attack: Any, hiding: Callable[[], LlamaForCausalLM], least: int) -> None:
    assert models.recovered(Prompt(), hiding()) == 0
    assert models.recovered(attack, hiding()) >= least


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_what_was_never_known_does_not(attack: Any) -> None:
    assert models.recovered(attack, models.never_knew()) == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_attacks_keep_their_contract(attack: Any) -> None:
    hiding = next(made for one, made, _ in HIDING if one == attack)
    contract.assert_contract(attack, hiding(), models)
    contract.assert_bounded_in_time(attack, hiding(), models)
    contract.assert_cost_is_known(attack, models)


def test_hooks_are_gone_after_an_error() -> None:
    model = models.knowing()

    def fail(_stream: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("provoked")

    ids = torch.tensor([[2, 3]])
    before, hooked = model(ids).logits, hooks(model)
    with pytest.raises(RuntimeError, match="provoked"), changed(model, {0: fail}):
        model(ids)
    with pytest.raises(RuntimeError, match="provoked"), changed(model, {2: fail, 3: fail}):
        model(ids)
    assert hooks(model) == hooked
    assert torch.equal(model(ids).logits, before)


def test_changes_act_where_they_are_put() -> None:
    """Overwriting the stream behind layer l with another prompt's gives that prompt's logits."""
    model, one, other = models.knowing(), torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 10]])
    with torch.no_grad():
        wanted = model(other, output_hidden_states=True)
        for layer in range(3):
            with changed(model, {layer: lambda _s, l=layer: wanted.hidden_states[l]}):  # noqa: E741
                torch.testing.assert_close(model(one).logits, wanted.logits)


# --- the lens


def test_the_last_layer_reads_what_the_model_says() -> None:
    model = models.knowing()
    rows = models.ENCODING.rows(models.probes().retain, models.tokenizer())
    read = readings(models.target(model), rows, models.setting())
    for one, scores in zip(read, score(model, rows, pad_id=1), strict=True):
        torch.testing.assert_close(
            one.probabilities[-1].double().log(), torch.tensor(scores.log_probs[:-1]), rtol=0, atol=1e-4
        )
        assert (one.ranks[-1] == 0).tolist() == scores.matches[:-1].tolist()


def test_the_final_norm_is_found_by_watching() -> None:
    model = models.knowing()
    hooked = hooks(model)
    assert final_norm(model) is model.model.norm
    assert hooks(model) == hooked


def test_streams_are_those_before_each_response_token() -> None:
    model = models.knowing()
    rows = models.ENCODING.rows(models.probes().forget, models.tokenizer())
    states = response_states(model, rows, [0, 2], "fp32")
    for row, found in zip(rows, states, strict=True):
        with torch.no_grad():
            whole = model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states
        part = slice(row.prompt_length - 1, len(row.input_ids) - 1)
        torch.testing.assert_close(found, torch.stack([whole[0][0, part], whole[2][0, part]]))


def test_a_page_shows_some_layers_and_the_last() -> None:
    assert shown(3) == [0, 1, 2]
    assert shown(31)[-1] == 30
    assert len(set(shown(31))) == 8


# --- probes, patching, ablation


def test_a_probe_says_what_it_cannot_name() -> None:
    probes = models.probes()
    letters = {record.response[0] for record in probes.forget[:1]}
    kept = [record for record in probes.retain if not letters & set(record.response)]
    found = LinearProbe().run(
        models.target(models.knowing()), dataclasses.replace(probes, retain=kept), models.setting()
    )
    assert re.search("[1-9] of 8 first tokens", found.notes[0])
    assert found.recoveries[0].score == 0
    assert "first token named, holdout, layer 1" in found.values


def test_a_probe_reads_no_more_of_the_retain_set_than_it_is_told() -> None:
    probes = models.probes()
    many = dataclasses.replace(probes, retain=[*probes.retain] * 40)
    read: list[int] = []

    def counting(*args: Any) -> Any:
        found = response_states(*args)
        read.append(len(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.attacks.activations.probe.response_states", counting)
        found = LinearProbe(positions=50).run(models.target(models.knowing()), many, models.setting())
    assert found.complete
    assert max(read) <= 32, "in portions"
    assert sum(read) == 50 + len(probes.forget) + len(probes.holdout)
    again = LinearProbe(positions=50).run(models.target(models.knowing()), many, models.setting())
    assert again == found
    late = LinearProbe().run(models.target(models.knowing()), many, Setting(clock=Clock(1e-9)))
    assert not late.complete
    assert "before the first probe" in late.notes[0]


def test_patching_refuses_another_architecture() -> None:
    setting = Setting(original=models.target(models.drowned(), "original"))
    with pytest.raises(UsageError, match="as many blocks"):
        ActivationPatching().run(models.target(models.knowing()), models.probes(), setting)


def test_obstacles_say_what_would_help() -> None:
    probes = models.probes()
    bare = Probes(probes.forget)
    assert "Give --original." in str(ActivationPatching().obstacle(probes, Setting()))
    assert "Give --retain." in str(RefusalAblation().obstacle(bare, Setting()))
    assert "Give more with --retain." in str(LinearProbe().obstacle(bare, Setting()))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: LogitLens(batch=0), "`batch` must be at least 1; got 0"),
        (lambda: LinearProbe(ridge=0.0), "`ridge` must be positive; got 0"),
        (lambda: ActivationPatching(positions=0), "`positions` must be at least 1; got 0"),
        (lambda: ActivationPatching(every=0), "`every` must be at least 1; got 0"),
        (lambda: RefusalAblation(directions=0), "`directions` must be at least 1; got 0"),
    ],
)
def test_budgets_of_nothing_are_refused(make: Callable[[], Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()
