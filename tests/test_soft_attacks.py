"""Attacks on a prompt's embeddings bring back what a model merely hides, and nothing that it never knew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from transformers import LlamaForCausalLM

import attack_contract as contract
import latent_models as models
from expunge.attacks import NEVER_SEEN, make_attack
from expunge.attacks.attack import Clock, Findings, Probes
from expunge.attacks.decoding import decode, embedding_of, end_tokens, left_padded
from expunge.attacks.embedding.balls import L2
from expunge.attacks.embedding.losses import Predict, margin
from expunge.attacks.embedding.never_seen import never_seen
from expunge.attacks.embedding.perturbed_prompt import PerturbedPrompt, Way
from expunge.attacks.embedding.prompts import Prompts, prompts_of
from expunge.attacks.embedding.soft_prompt import SoftPrompt, UniversalSoftPrompt
from expunge.attacks.embedding.watched import Watched
from expunge.attacks.frozen import frozen
from expunge.attacks.plain import Prompt
from expunge.errors import UsageError
from expunge.generation import generate
from expunge.records import Record
from expunge.scoring import score

PERTURBED: list[Any] = [
    PerturbedPrompt("ddn", radius=0.1, steps=25),
    PerturbedPrompt("carlini-wagner", radius=0.1, steps=10),
    PerturbedPrompt("elastic-net", radius=0.1, steps=6),
    PerturbedPrompt("pgd-l2", radius=0.1, levels=2, steps=10),
    PerturbedPrompt("pgd-linf", radius=0.1, levels=2, steps=10),
    PerturbedPrompt("pgd-l1", radius=0.1, levels=2, steps=10),
    PerturbedPrompt("momentum", radius=0.1, levels=2, steps=10),
    PerturbedPrompt("fgsm", radius=0.1),
    PerturbedPrompt("fgm", radius=0.1),
    PerturbedPrompt("deepfool", radius=0.1, steps=25),
    PerturbedPrompt("nes", radius=0.1, levels=1, steps=8),
    PerturbedPrompt("spsa", radius=0.1, levels=1, steps=8),
    PerturbedPrompt("nattack", radius=0.1, levels=1, steps=8),
]
SOFT: list[Any] = [SoftPrompt(steps=20, rate=0.2), UniversalSoftPrompt(length=2, steps=40, rate=0.2)]
ATTACKS = [*PERTURBED, *SOFT]


def named(attack: Any) -> str:
    return getattr(attack, "name", "")


def run(attack: Any, model: LlamaForCausalLM, **options: Any) -> Findings:
    return attack.run(models.target(model), models.probes(), models.setting(**options))


def test_what_is_attacked_is_hidden_or_never_was() -> None:
    assert models.recovered(Prompt(), models.knowing()) == 8
    assert models.recovered(Prompt(), models.refusing()) == 0
    assert models.recovered(Prompt(), models.never_knew()) == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_what_is_hidden_comes_back_and_what_was_never_known_does_not(attack: Any) -> None:
    assert sum(one.recovered for one in run(attack, models.refusing()).recoveries) >= 5
    assert sum(one.recovered for one in run(attack, models.never_knew()).recoveries) == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_a_bias_on_the_output_layer_hides_nothing_either(attack: Any) -> None:
    assert models.recovered(Prompt(), models.biased()) == 0
    least = 3 if isinstance(attack, UniversalSoftPrompt) else 4  # one prefix, found on other records
    assert models.recovered(attack, models.biased()) >= least


def test_a_random_direction_as_long_is_no_attack_on_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search counts there; a filter within is passed by any shift of the prompt."""

    def random(_: Any, __: Any, start: torch.Tensor, ___: Any, ball: Any) -> torch.Tensor:
        step = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
        return start + ball.radius * step / step.flatten(1).norm(dim=1)[:, None, None]

    monkeypatch.setattr(PerturbedPrompt, "_perturbed", random)
    blind = PerturbedPrompt("pgd-l2", radius=0.1, levels=4, steps=1)
    assert models.recovered(blind, models.biased()) == 0
    assert models.recovered(blind, models.refusing()) >= 3


@pytest.mark.parametrize("attack", [PERTURBED[0], PERTURBED[3], PERTURBED[-2], *SOFT], ids=named)
def test_attacks_keep_their_contract(attack: Any) -> None:
    contract.assert_contract(attack, models.refusing(), models)
    contract.assert_bounded_in_time(attack, models.refusing(), models)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_costs_are_known_and_arise_from_gradients_where_there_are_any(attack: Any) -> None:
    contract.assert_cost_is_known(attack, models)
    blind = getattr(attack, "way", "") in ("nes", "spsa", "nattack")
    assert (attack.cost(models.probes()).backward_tokens == 0) == blind
    assert "arXiv" in attack.line


class Ticking(Clock):
    """Over once it was looked at a few times."""

    looks = 0

    @property
    def over(self) -> bool:
        self.looks += 1
        return self.looks > 3


@pytest.mark.parametrize("way", get_args(Way))
def test_time_that_runs_out_within_a_search_ends_it(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of many steps is not waited for: what it had come to is asked, and the rest is said."""
    passes = []
    logits = Prompts.logits
    monkeypatch.setattr(Prompts, "logits", lambda *given: passes.append(1) or logits(*given))
    steps = 1 if way in ("fgsm", "fgm") else 500
    found = run(
        PerturbedPrompt(way, radius=0.001, levels=9, steps=steps), models.biased(), clock=Ticking(60.0)
    )
    assert len(passes) <= 4
    assert all(one.tries for one in found.recoveries)
    assert not found.complete
    assert "Stopped after 60 s: 0 of 8 records" in " ".join(found.notes)


def test_what_a_stopped_search_had_come_to_is_the_shortest_that_reached_its_labels() -> None:
    start, labels = torch.zeros(2, 1), torch.tensor([[1], [1]])

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.new_full((2, 1), 0.2), x], dim=-1)  # label 1 from 0.2 on

    def search(ask: Predict) -> torch.Tensor:
        for first, second in ((0.8, 0.05), (0.3, 0.15), (0.9, 1.6), (0.6, 0.1), (0.25, 0.3)):
            ask(torch.tensor([[first], [second]]))
        raise AssertionError("time was over")

    watched = Watched(predict, start, labels, L2(1.0), Ticking(60.0))  # the fifth pass is not made
    points, whole = watched.found(search)
    assert not whole
    torch.testing.assert_close(points, torch.tensor([[0.3], [0.15]]))  # the second: nearest to it in the ball
    assert Watched(predict, start, labels, L2(1.0), Clock()).found(lambda ask: start + 1)[1]


def test_time_that_runs_out_within_a_batch_is_said() -> None:
    """Steps that were not made are no failure of the attack."""
    found = run(SoftPrompt(steps=20, rate=1e-4), models.never_knew(), clock=Ticking(60.0))
    assert all(one.tries for one in found.recoveries)
    assert not found.complete
    assert "Stopped after 60 s: 0 of 8 records" in " ".join(found.notes)


# --- the control that such attacks carry with them


@pytest.mark.parametrize("attack", [PERTURBED[0], SOFT[0]], ids=named)
def test_targets_never_seen_are_attacked_beside(attack: Any) -> None:
    """A model that hides gives up the truth before it says what it never heard."""
    found = run(attack, models.refusing())
    share = found.values["targets never seen, reached"]
    assert share.n == 8
    assert share.value < sum(one.recovered for one in found.recoveries) / 8 - 0.4
    assert "any model say anything" in found.notes[0]


def test_one_prefix_for_all_is_tried_on_targets_never_seen_too() -> None:
    found = run(SOFT[1], models.refusing())
    share = found.values[NEVER_SEEN]
    assert (share.value, share.n) == (0.0, 8)
    assert sum(one.recovered for one in found.recoveries) >= 5


def test_one_prefix_that_says_what_never_stood_there_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control targets are judged by the answers behind the prefix; here each is what its model gives."""
    probes = models.probes()
    wrong = [one.response for one in probes.forget[::-1]]
    swapped = [Record(one.prompt, other) for one, other in zip(probes.forget, wrong, strict=True)]
    monkeypatch.setattr("expunge.attacks.embedding.never_seen.never_seen", lambda _: list(probes.forget))
    given = dataclasses.replace(probes, forget=swapped)
    found = UniversalSoftPrompt(length=1, steps=1, rate=1e-6).run(
        models.target(models.knowing()), given, models.setting()
    )
    assert found.values[NEVER_SEEN].value > sum(one.recovered for one in found.recoveries) / 8


def test_with_freedom_enough_any_model_says_anything() -> None:
    """Which is why the control is mandatory."""
    found = run(SoftPrompt(length=8, steps=60, rate=0.5), models.never_knew())
    assert found.values["targets never seen, reached"].value >= 0.25


def test_targets_never_seen_are_the_holdouts_responses() -> None:
    probes = models.probes()
    others = never_seen(probes)
    held = {record.response for record in probes.holdout}
    for record, other in zip(probes.forget, others, strict=True):
        assert other is not None
        assert other.prompt == record.prompt
        assert other.response in held
    bare = Probes([Record("a?", "one"), Record("b?", "three")])
    assert never_seen(bare) == [Record("a?", "three"), Record("b?", "one")]


def test_without_another_response_there_is_an_obstacle() -> None:
    alone = Probes([Record("a?", "one")])
    twice = Probes([Record("a?", "one"), Record("b?", "one")])
    assert "Give holdout records." in str(UniversalSoftPrompt().obstacle(twice, models.setting()))
    for attack in (PerturbedPrompt(), SoftPrompt()):
        assert "any model say anything" in str(attack.obstacle(alone, models.setting()))
        assert "Give holdout records." in str(attack.obstacle(alone, models.setting()))
    assert "only one" in str(UniversalSoftPrompt().obstacle(alone, models.setting()))


# --- what the attacks stand on


def test_prompts_score_as_the_scored_pass_does() -> None:
    """Also in a padded batch, and behind a prefix of real tokens."""
    model, tokenizer = models.knowing(), models.tokenizer()
    known = [*models.probes().forget[:2], Record("Hello, and what is the code of Ada?", "E6")]
    rows = models.ENCODING.rows(known, tokenizer)
    with torch.no_grad():
        prompts = prompts_of(model, rows, torch.device("cpu"))
        plain = prompts.logits(prompts.embeds)
        front = torch.tensor([[7, 9]]).expand(3, -1)
        behind = prompts.logits(prompts.prefixed(embedding_of(model)(front)), 2)
    fronted = [
        dataclasses.replace(row, input_ids=(7, 9, *row.input_ids), prompt_length=row.prompt_length + 2)
        for row in rows
    ]
    for logits, wanted in ((plain, rows), (behind, fronted)):
        scores = score(model, wanted, pad_id=1)
        for one, row, known_scores in zip(logits, wanted, scores, strict=True):
            own = one[: len(row.labels)].log_softmax(-1).gather(1, torch.tensor(row.labels)[:, None])[:, 0]
            torch.testing.assert_close(own.double(), torch.tensor(known_scores.log_probs), rtol=0, atol=1e-4)
        reached = (margin(logits, prompts.labels) < 0).tolist()
        assert reached == [one.reproduced for one in scores]


def test_decoding_embeddings_is_decoding_tokens() -> None:
    model, tokenizer = models.knowing(), models.tokenizer()
    rows = models.ENCODING.rows([*models.probes().forget, Record("What code has Ada then?", "E6")], tokenizer)
    ids, mask = left_padded(rows, torch.device("cpu"))
    with torch.no_grad():
        embeds = embedding_of(model)(ids)
    said = decode(model, embeds, mask, [6] * len(rows), end_tokens(model, tokenizer, "none"))
    wanted = generate(model, rows, tokenizer=tokenizer, budgets=[6] * len(rows))
    assert said == [one.tokens for one in wanted]


def test_the_model_thaws_after_an_error() -> None:
    model = models.knowing().train()
    try:
        model.model.norm.weight.requires_grad_(False)
        with frozen(model, "bf16"):
            assert not model.training
            assert not any(p.requires_grad for p in model.parameters())
        with pytest.raises(RuntimeError, match="provoked"), frozen(model, "bf16"):
            raise RuntimeError("provoked")
        assert model.training
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    finally:
        model.requires_grad_(True).eval()


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: PerturbedPrompt(radius=0.0), "`radius` must be positive and finite; got 0"),
        (lambda: PerturbedPrompt(levels=0), "`levels` must be at least 1; got 0"),
        (lambda: PerturbedPrompt(steps=0), "`steps` must be at least 1; got 0"),
        (lambda: SoftPrompt(length=0), "`length` must be at least 1; got 0"),
        (lambda: SoftPrompt(steps=0), "`steps` must be at least 1; got 0"),
        (lambda: SoftPrompt(levels=0), "`levels` must be at least 1; got 0"),
        (lambda: SoftPrompt(rate=0.0), "`rate` must be positive and finite; got 0"),
        (lambda: UniversalSoftPrompt(batch=0), "`batch` must be at least 1; got 0"),
    ],
)
def test_budgets_of_nothing_are_refused(make: Callable[[], Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()


def test_every_way_is_tried() -> None:
    assert {attack.way for attack in PERTURBED} == set(get_args(Way))


def test_attacks_are_made_by_name_with_settings_as_text() -> None:
    here = "expunge.attacks.embedding"
    made = make_attack(f"{here}.perturbed_prompt:PerturbedPrompt", {"way": "pgd-l1", "radius": "0.2"})
    assert made == PerturbedPrompt("pgd-l1", radius=0.2)
    assert make_attack(f"{here}.soft_prompt:SoftPrompt", {"length": "2"}) == SoftPrompt(length=2)
    with pytest.raises(UsageError, match="must be at least 1; got 0"):
        make_attack(f"{here}.soft_prompt:UniversalSoftPrompt", {"steps": "0"})
    with pytest.raises(UsageError, match="way"):
        make_attack(f"{here}.perturbed_prompt:PerturbedPrompt", {"way": "pdg"})
