"""Membership attacks: they see what is merely hidden, and keep to their rate of false alarms."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import weakened_models as world
from expunge import membership
from expunge.attacks import Attack, Clock, Probes, Setting
from expunge.attacks import membership as membership_attacks
from expunge.attacks.membership import Membership, MembershipEnsemble, measure
from expunge.records import Record
from weakened_models import FORGET, HOLDOUT, PROBES, target


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that never saw the forget rows, as a folder."""
    folder: Path = tmp_path_factory.mktemp("reference")
    world.never_knew().save_pretrained(folder)
    world.tokenizer().save_pretrained(folder)
    return str(folder)


def every(reference: str) -> list[Attack]:
    return [
        Membership(),
        Membership("zlib"),
        Membership("reference", reference_model=reference),
        Membership("gradient_norm"),
        Membership("min_k"),
        Membership("min_k_plus_plus"),
        MembershipEnsemble(),
    ]


def test_members_behind_a_bias_on_the_output_layer_are_flagged_and_strangers_are_not(reference):
    for attack in every(reference):
        found = attack.run(target(world.biased()), PROBES, Setting())
        assert sum(one.recovered for one in found.recoveries) == 8, attack.name
        assert found.values["auc"].value == 1.0
        assert found.values["flagged"].value == 1.0
        stranger = attack.run(target(world.biased_ignorance()), PROBES, Setting())
        innocent = stranger.values
        assert innocent["auc"].low <= 0.5, attack.name
        assert innocent["auc"].value < 0.8, attack.name
        assert sum(one.recovered for one in stranger.recoveries) <= 4, attack.name
        assert innocent["auc"].n == len(FORGET) + len(HOLDOUT)


def test_nothing_is_changed_and_the_same_seed_gives_the_same_findings(reference):
    model = copy.deepcopy(world.never_knew())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for attack in every(reference):
        first = attack.run(target(model), PROBES, Setting(seed=1))
        torch.manual_seed(5)
        assert attack.run(target(model), PROBES, Setting(seed=1)) == first
        assert first.complete
        assert attack.family == "membership"
        assert isinstance(attack, Attack)
        cost = attack.cost(PROBES)
        assert cost.forward_tokens > 0
        assert (cost.backward_tokens > 0) == (
            attack.name in ("membership-gradient-norm", "membership-ensemble")
        )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad


def test_names_are_those_of_the_benchmarks():
    names = {attack.name for attack in every("x")}
    expected = {f"membership-{name.replace('_', '-')}" for name in membership.ATTACKS}
    assert names == expected | {"membership-ensemble"}
    assert all(attack.line.endswith(".") for attack in every("x"))


def test_scores_are_those_of_the_functions(reference):
    """Against the pure functions on a scored pass of its own, for a forget and a holdout record."""
    from expunge.scoring import score

    model, names = world.knowing(), ("loss", "zlib", "reference", "gradient_norm", "min_k", "min_k_plus_plus")
    found = measure(names, target(model), PROBES, Setting(), reference)
    for i, record in ((0, FORGET[0]), (len(FORGET), HOLDOUT[0])):
        rows = world.ENCODING.rows([record], world.tokenizer())
        mine, theirs = (
            membership.without_end(score(m, rows, pad_id=1, moments=True)[0])
            for m in (model, world.never_knew())
        )
        loss = model(
            input_ids=torch.tensor([rows[0].input_ids]),
            labels=torch.tensor([(-100,) * rows[0].prompt_length + rows[0].labels]),
        ).loss
        norm = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).norm()
        expected = [
            membership.loss(mine),
            membership.zlib_ratio(mine, record.response),
            membership.reference(mine, theirs),
            -norm.item(),
            membership.min_k(mine),
            membership.min_k_plus_plus(mine),
        ]
        np.testing.assert_allclose(found[i], expected, rtol=2e-3, atol=1e-4)


def test_strangers_are_flagged_at_the_rate_that_is_stated():
    draw = np.random.default_rng(0)
    many = Probes([Record("p", "r")] * 800, holdout=[Record("q", "r")] * 400)
    scores = dict(enumerate(draw.normal(size=1200).tolist()))
    for rate in (0.05, 0.2):
        found = membership_attacks._findings("membership-loss", scores, many, Setting(), rate)
        assert abs(found.values["flagged"].value - rate) < 3 * (rate * (1 - rate) / 400) ** 0.5
        assert found.values["auc"].low < 0.5 < found.values["auc"].high
        assert not found.notes


def test_a_score_is_the_share_of_the_holdout_that_looks_less_familiar():
    probes = Probes(FORGET[:3], holdout=[HOLDOUT[0]] * 4)
    found = membership_attacks._findings(
        "membership-loss", dict(enumerate([5.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0])), probes, Setting(), 0.05
    )
    assert [one.score for one in found.recoveries] == [1.0, 0.25, 0.0]
    assert [one.recovered for one in found.recoveries] == [True, False, False]
    assert "75% of the holdout" in found.recoveries[1].input
    assert "20% of records never seen" in found.notes[0]


def test_the_ensemble_is_no_better_than_chance_on_noise():
    """Out-of-fold: five columns of noise tell nobody apart, though a fit on all rows would seem to."""
    draw = np.random.default_rng(3)
    found = {i: draw.normal(size=5).tolist() for i in range(120)}
    odds = MembershipEnsemble()._odds(found, 60, seed=0)
    probes = Probes([Record("p", "r")] * 60, holdout=[Record("q", "r")] * 60)
    values = membership_attacks._findings("membership-ensemble", odds, probes, Setting(), 0.05).values
    assert values["auc"].low < 0.5
    for i in range(60):
        found[i] = [value + shift for value, shift in zip(found[i], (0.9, -0.9, 0.9, 0, 0), strict=True)]
    odds = MembershipEnsemble()._odds(found, 60, seed=0)
    together = membership_attacks._findings("membership-ensemble", odds, probes, Setting(), 0.05).values[
        "auc"
    ]
    alone = membership_attacks._findings(
        "x", {i: v[0] for i, v in found.items()}, probes, Setting(), 0.05
    ).values["auc"]
    assert together.value > alone.value > 0.6


def test_a_broken_model_gives_no_score_and_says_so():
    broken = copy.deepcopy(world.never_knew())
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    for attack in (Membership(), MembershipEnsemble()):
        found = attack.run(target(broken), PROBES, Setting())
        assert not any(one.recovered for one in found.recoveries)
        assert not found.complete, "no answer is not the answer no"
        assert any("no finite score" in note for note in found.notes), attack.name


def test_out_of_time_is_said():
    found = Membership().run(target(world.knowing()), PROBES, Setting(clock=Clock(1e-9)))
    assert not found.complete
    assert "Stopped after" in found.notes[0]
    assert not any(one.recovered or one.tries for one in found.recoveries)


def test_obstacles_are_said_in_words(tmp_path):
    assert "--holdout" in (Membership().obstacle(Probes(FORGET), Setting()) or "")
    assert "at least 2" in (
        MembershipEnsemble().obstacle(Probes(FORGET, holdout=HOLDOUT[:1]), Setting()) or ""
    )
    missing = Membership("reference", reference_model=str(tmp_path / "nothing"))
    assert "reference_model" in (missing.obstacle(PROBES, Setting()) or "")
    assert all(attack.obstacle(PROBES, Setting()) is None for attack in (Membership(), MembershipEnsemble()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Membership(rate=0.0), lambda: Membership(rate=1.0),
        lambda: MembershipEnsemble(("loss",)), lambda: MembershipEnsemble(("loss", "loss")),
        lambda: MembershipEnsemble(folds=1), lambda: MembershipEnsemble(rate=float("nan")),
    ],
)  # fmt: skip
def test_budgets_of_nothing_are_refused(make):
    with pytest.raises(ValueError, match=r"must be .*got"):
        make()
