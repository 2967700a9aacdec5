"""Laws of every attack, on the models of `attacked_models`."""

from __future__ import annotations

from transformers import LlamaForCausalLM

import attacked_models as world
from expunge.attacks import Attack, Clock
from expunge.models import weights_hash


def assert_reproducible(attack: Attack, model: LlamaForCausalLM) -> None:
    """The same seed gives the same findings; the model is left bit-identical and in evaluation mode."""
    before = weights_hash(model)
    first, second = (attack.run(world.target(model), world.probes(), world.setting(seed=3)) for _ in range(2))
    assert first == second
    assert weights_hash(model) == before
    assert not model.training


def assert_bounded_in_time(attack: Attack, model: LlamaForCausalLM) -> None:
    """Without time nothing is tried, and the findings say so."""
    out = attack.run(world.target(model), world.probes(), world.setting(clock=Clock(1e-9)))
    assert not out.complete
    assert [(one.recovered, one.tries) for one in out.recoveries] == [(False, 0)] * 4
    assert any("Stopped after" in note for note in out.notes)


def assert_findings_agree(attack: Attack, model: LlamaForCausalLM) -> None:
    """A recovery tells input and output; the curve never falls and ends at the recoveries."""
    out = attack.run(world.target(model), world.probes(), world.setting())
    assert out.complete
    found = next(one for one in out.recoveries if one.recovered)
    assert found.input
    assert found.output
    assert found.score == 1.0
    assert out.axis
    budgets = sorted(out.curve)
    assert list(out.curve[budgets[-1]]) == [one.recovered for one in out.recoveries]
    shares = [sum(out.curve[budget]) for budget in budgets]
    assert shares == sorted(shares)


def assert_cost_is_known(attack: Attack) -> None:
    """The probes alone say what it takes, and that nothing stands in the way."""
    cost = attack.cost(world.probes())
    assert cost.forward_tokens > 0
    assert cost.generated_tokens > 0
    assert attack.obstacle(world.probes(), world.setting()) is None
