"""Parts of a user's own method that do not keep what their interfaces promise are refused, and by name."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from torch import Tensor

import conftest
import expunge
from expunge import UsageError
from expunge.methods import METHODS, Method
from expunge.objectives import NLL, Ascent, Objective, Selected, TokenLogits
from expunge.observation import total
from expunge.own_parts import check_parts
from expunge.settings import resolve_method
from expunge.step_sizes import Proposal
from expunge.stopping import RetainBudget
from expunge.weightings import Constant, Normalized

ROWS = conftest.rows()
QUICK = {"bf16": False, "template": "none", "seed": 0, "max_steps": 1, "check_every": 0, "evaluate": False}


@dataclass(frozen=True)
class Own(Objective):
    """The NLL, reduced in some way before it is returned."""

    how: str = "whole"
    source: str = "forget"
    unit: str = "token"
    name = "own"

    def __call__(self, tokens: TokenLogits):
        values = -tokens.target_log_probs
        rows = tokens.sum_rows(values)
        return {
            "whole": values,
            "mean": values.mean(),
            "number": 3.0,
            "short": values[:-1],
            "column": values[:, None],
            "rows": rows,
        }[self.how]


def observed(selected: Tensor | None = None) -> TokenLogits:
    """Five tokens of two rows."""
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    return TokenLogits(logits, torch.arange(5), torch.tensor([0, 0, 2, 2, 2]), selected)


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        (Own("mean"), r"'own' \(Own\) must give one value per token, .* \[5\] here; .* shape \[\]"),
        (Ascent(Own("short")), r"\(Ascent of Own\) must give one value per token"),
        (Own("number"), "it gave float"),
        (Own("short"), r"it gave a tensor of shape \[4\]"),
        (Own("column"), r"it gave a tensor of shape \[5, 1\]"),
        (Own("rows"), r"it gave a tensor of shape \[2\]"),
        (Own("whole", unit="row"), r"must give one value per row, a tensor of shape \[2\] here; .*\[5\]"),
        (Own("mean", unit="row"), r"it gave a tensor of shape \[\]"),
    ],
)
def test_an_objective_gives_one_value_per_token_or_row(objective, found):
    with pytest.raises(UsageError, match=found) as caught:
        total(objective, observed())
    assert "\n" not in str(caught.value)


def test_the_objective_of_the_readme_is_one():
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    block = next(part for part in re.findall(r"```python\n(.*?)```", text, re.S) if "(Objective)" in part)
    exec(block, names := {"__name__": __name__})
    objective, seen = names["Confidence"](), observed()
    assert (objective.name, objective.source) == ("confidence", "forget")
    assert float(total(objective, seen)) == pytest.approx(float(seen.target_log_probs.exp().sum()))


def test_where_tokens_are_selected_one_value_for_these_or_for_all():
    selected = torch.tensor([False, False, True, True, False])
    seen = observed(selected)
    wanted = float(-seen.target_log_probs[2:4].sum())
    assert float(total(Own(), seen)) == pytest.approx(wanted)
    assert float(total(Selected(Own(), "all"), seen)) == pytest.approx(wanted)
    assert float(total(Selected(Own("rows", unit="row"), "all"), seen)) == pytest.approx(wanted)
    with pytest.raises(UsageError, match=r"must give one value per token, a tensor of shape \[2\] here"):
        total(Selected(Own("short"), "all"), seen)


def test_a_mean_ends_the_run_before_anything_moves(model_folder):
    method = Method("m", (Own("mean"), NLL("retain")), Constant((1.0, 1.0)))
    with pytest.raises(UsageError, match=r"'own' \(Own\) must give one value per token"):
        expunge.unlearn(model_folder, forget=ROWS[:6], retain=ROWS[6:], method=method, **QUICK)


# --- weightings


@dataclass
class Weights:
    """As many weights as it is told to give."""

    count: int = 2
    needs_gramian = True

    def __call__(self, gramian, losses):
        assert gramian.dtype == losses.dtype == torch.float64
        assert torch.linalg.eigvalsh(gramian).min() > 0
        return torch.ones(self.count, dtype=torch.float64)


class Silent:
    """Without a word on what it needs."""

    def __call__(self, gramian, losses):
        return torch.ones(2, dtype=torch.float64)


class Half(Weights):
    """It remembers, and cannot be saved."""

    def reset(self):
        pass

    def observe(self, losses):
        pass


class Whole(Half):
    """With a memory of which `state` says the wrong thing."""

    def state(self):
        return {"history": [1.0, 2.0]}

    def restore(self, state):
        pass


class Raising(Weights):
    def __call__(self, gramian, losses):
        return torch.ones(2)[gramian["key"]]


class List(Weights):
    def __call__(self, gramian, losses):
        return [1.0, 1.0]


def method(weighting, **words) -> Method:
    made = Method("mine", (Ascent(NLL("forget")), NLL("retain")), Constant((1.0, 1.0)), **words)
    object.__setattr__(made, "weighting", weighting)  # past the type checks of the test run
    return made


@pytest.mark.parametrize(
    ("weighting", "rule"),
    [
        (Silent(), "weighting Silent of method 'mine' must say in `needs_gramian`"),
        (
            Half(),
            "Half .* must have all of reset, observe, state, restore .*; it lacks state, restore. Add them",
        ),
        (Whole(), "must keep its state as numbers by name"),
        (Weights(3), r"one weight per objective, a tensor of shape \[2\] for 2 of them; .* shape \[3\]"),
        (List(), r"it gave list \[1.0, 1.0\]"),
        (Raising(), r"Raising .* it raises \w+: .*test_own_parts.py, line \d+\). Mend it"),
    ],
)
def test_a_weighting_is_tried_before_anything_is_trained(weighting, rule, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=rule) as caught:
        check_parts(method(weighting))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=rule):
        resolve_method(method(weighting), {})


def test_the_engine_tries_them_too(model, tokenizer, tmp_path):
    args = expunge.UnlearningArguments(output_dir=str(tmp_path), use_cpu=True, **_engine())
    with pytest.raises(ValueError, match="must say in `needs_gramian`"):
        expunge.Unlearner(model, args, method(Silent()), tokenizer, ROWS[:6], ROWS[6:])


def _engine():
    return {k: v for k, v in QUICK.items() if k != "evaluate"}


def test_a_weighting_answers_for_the_objectives_of_a_repair_too():
    check_parts(method(Weights(), budget=RetainBudget(repair=False)))
    with pytest.raises(ValueError, match=r"shape \[1\] for 1 of them; it gave a tensor of shape \[2\]"):
        check_parts(method(Weights(), budget=RetainBudget()))


def test_one_that_needs_no_gramian_sees_zeros_and_all_objectives():
    class Plain(Weights):
        needs_gramian = False

        def __call__(self, gramian, losses):
            assert not gramian.any()
            assert not losses.any()
            return torch.ones(2, dtype=torch.float64)

    check_parts(method(Plain(), budget=RetainBudget()))


@dataclass
class Counting(Weights):
    """It counts its calls, draws random numbers, and cannot be copied where it holds a lock."""

    calls: int = 0
    held: object = None
    log: list = field(default_factory=list)

    def __call__(self, gramian, losses):
        self.calls += 1
        self.log.append(float(torch.rand(()) + np.random.rand()))
        return torch.ones(len(losses), dtype=torch.float64)

    def reset(self):
        self.calls = 0

    def observe(self, losses):
        self.calls += 100

    def state(self):
        return {"calls": self.calls}

    def restore(self, state):
        self.calls = int(state["calls"])


def test_trying_leaves_nothing_behind():
    torch.manual_seed(5), np.random.seed(5)
    expected = float(torch.rand(())), float(np.random.rand())
    torch.manual_seed(5), np.random.seed(5)
    copied, held = Counting(), Counting(held=Lock())
    check_parts(method(copied))
    check_parts(method(held))
    assert (float(torch.rand(())), float(np.random.rand())) == expected
    assert (copied.calls, copied.log) == (0, [])
    assert held.calls == 0


def test_parts_of_the_package_are_not_tried():
    class Never(Normalized):
        __module__ = "expunge.weightings.normalized"

        def __call__(self, gramian, losses):
            pytest.fail("it was tried")

    check_parts(method(Never()))
    made = [make() for make in METHODS.values()]
    start = time.perf_counter()
    for one in made:
        check_parts(one)
    assert (time.perf_counter() - start) / len(made) < 0.005


def test_weights_in_single_precision_are_as_good(model_folder):
    class Single(Weights):
        def __call__(self, gramian, losses):
            return torch.ones(2)

    sets = {"forget": ROWS[:6], "retain": ROWS[6:]}
    assert len(expunge.unlearn(model_folder, **sets, method=method(Single()), **QUICK).record.history) == 1


# --- step sizes


@dataclass(frozen=True)
class Rule:
    every: object = 3
    rows: object = 4

    def __call__(self, learning_rate, line):
        assert line.slope > 0
        assert line.curvature > 0
        assert line.rise > 0
        assert len(line.zero) == self.rows
        return Proposal(2 * learning_rate, "twice")


class Bare(Rule):
    def __call__(self, learning_rate, line):
        return 2 * learning_rate


class Broken(Rule):
    def __call__(self, learning_rate, line):
        return Proposal(learning_rate * line.width, "wide")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Bare(), "step size Bare must give a Proposal, .*; it gave float 0.0002. Return Proposal"),
        (Broken(), r"it raises AttributeError: .* \(.*test_own_parts.py, line \d+\). Mend it"),
        (Rule(every=0), "must say in `every` .*; it has every = 0"),
        (Rule(rows="all"), "must say in `rows` .*; it has rows = 'all'"),
    ],
)
def test_a_step_size_is_tried_before_anything_is_trained(rule, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_parts(method(Normalized(), step_size=rule))
    assert "\n" not in str(caught.value)


def test_a_step_size_of_ones_own_passes():
    check_parts(method(Normalized(), step_size=Rule()))


def test_an_objective_without_a_data_set_says_so():
    class Nowhere(Objective):
        name = "nowhere"

        def __call__(self, tokens):
            return tokens.target_log_probs

    with pytest.raises(ValueError, match=r"'nowhere' \(.*Nowhere\) must have a `source`"):
        check_parts(Method("m", (Nowhere(),), Constant((1.0,))))
