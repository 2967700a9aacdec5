"""Laws of every attack, on the models of `attacked_models` or of `latent_models`."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import torch
from transformers import LlamaForCausalLM

import attacked_models
from expunge.attacks import FAMILIES, Attack, Clock, Findings
from expunge.weights import weights_hash


def assert_contract(attack: Attack, model: LlamaForCausalLM, world: ModuleType = attacked_models) -> None:
    """It is an attack; the same seed gives the same findings; these agree; the model is as it was."""
    assert isinstance(attack, Attack)
    assert attack.family in FAMILIES
    assert attack.line.endswith(".")
    others = [model, world.knowing()]
    before = [state(one) for one in others]
    first = attack.run(world.target(model), world.probes(), world.setting())
    torch.manual_seed(99)
    assert attack.run(world.target(model), world.probes(), world.setting()) == first
    assert [state(one) for one in others] == before
    assert_findings_agree(attack, first, len(world.probes().forget))


def assert_findings_agree(attack: Attack, out: Findings, records: int) -> None:
    """A recovery tells its input, and its output where it has one; the curve never falls and ends there."""
    assert out.complete
    assert len(out.recoveries) == records
    assert all(0 <= one.score <= 1 for one in out.recoveries)
    found = next(one for one in out.recoveries if one.recovered)
    assert found.input
    if attack.family != "activations":  # some of these read, and let nothing be said
        assert found.output
        assert found.score == 1.0
    if out.curve:
        assert out.axis
        budgets = sorted(out.curve)
        assert list(out.curve[budgets[-1]]) == [one.recovered for one in out.recoveries]
        shares = [sum(out.curve[budget]) for budget in budgets]
        assert shares == sorted(shares)


def assert_bounded_in_time(
    attack: Attack, model: LlamaForCausalLM, world: ModuleType = attacked_models
) -> None:
    """Without time nothing is tried, and the findings say so."""
    out = attack.run(world.target(model), world.probes(), world.setting(clock=Clock(1e-9)))
    assert not out.complete
    assert [(one.recovered, one.tries) for one in out.recoveries] == [(False, 0)] * len(world.probes().forget)
    assert any("Stopped after" in note for note in out.notes)


def assert_cost_is_known(attack: Attack, world: ModuleType = attacked_models) -> None:
    """The probes alone say what it takes, more for more of them, and that nothing stands in the way."""
    probes = world.probes()
    small = attack.cost(dataclasses.replace(probes, forget=probes.forget[:2]))
    large = attack.cost(probes)
    assert 0 < small.forward_tokens < large.forward_tokens
    assert small.backward_tokens <= large.backward_tokens
    assert small.generated_tokens <= large.generated_tokens
    assert large.generated_tokens > 0 or attack.family == "activations"
    assert attack.obstacle(probes, world.setting()) is None


def state(model: LlamaForCausalLM) -> tuple[str, list[tuple[bool, int]], list[tuple[bool, bool]]]:
    """Weights; per module its mode and hooks; per parameter whether it wants and has a gradient."""
    modules = [
        (one.training, len(one._forward_hooks) + len(one._forward_pre_hooks)) for one in model.modules()
    ]
    return weights_hash(model), modules, [(p.requires_grad, p.grad is None) for p in model.parameters()]
