"""Objectives against closed forms in float64, and what they must not do."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

import closed_forms as by_hand
from expunge.logits import label_positions
from expunge.objectives import (
    CEU,
    DPO,
    KL,
    NLL,
    NPO,
    UCE,
    UNDIAL,
    WGA,
    ActivationMatching,
    Ascent,
    GenericLabels,
    InvertedHinge,
    LogitMargin,
    MaxEntropy,
    Needs,
    Objective,
    Reference,
    Replacement,
    SatImp,
    Selected,
    SimNPO,
    Steering,
    TokenLogits,
)

ROWS, TARGETS, PAIRED_TARGETS = [0, 0, 2, 2, 2, 3], [1, 4, 0, 2, 2, 3], [2, 0, 1]
PAIRED_ROWS = [0, 2, 3]


def table(seed: int, k: int, v: int = 5, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(k, v, generator=generator, dtype=torch.float64)


def batch(logits: torch.Tensor, ref: torch.Tensor, targets: list[int], rows: list[int]) -> TokenLogits:
    index = torch.tensor(targets)
    log_probs = ref.log_softmax(1).gather(1, index[:, None])[:, 0]
    return TokenLogits(logits, index, torch.tensor(rows), reference=Reference(log_probs, logits=ref))


def tokens(seed: int = 0, **given: object) -> TokenLogits:
    """Three rows of 2, 3 and 1 tokens over 5 words, each with a preferred response of one token."""
    paired = batch(table(seed + 2, 3), table(seed + 3, 3), PAIRED_TARGETS, PAIRED_ROWS)
    return replace(batch(table(seed, 6), table(seed + 1, 6), TARGETS, ROWS), paired=paired, **given)


def hand_row(t: TokenLogits, row: int) -> list[tuple[list[float], int]]:
    pairs = zip(t.logits.tolist(), t.targets.tolist(), t.rows.tolist(), strict=True)
    return [(z, y) for z, y, owner in pairs if owner == row]


def hand_ratio(t: TokenLogits, row: int) -> float:
    ref = replace(t, logits=t.reference.logits)
    return by_hand.log_likelihood(hand_row(t, row)) - by_hand.log_likelihood(hand_row(ref, row))


def gradient(objective: Objective, t: TokenLogits, logits: torch.Tensor) -> torch.Tensor:
    """Of the sum over tokens or rows, with respect to the logits."""
    here = replace(t, logits=logits.clone().requires_grad_())
    return torch.autograd.grad(objective(here).sum(), here.logits)[0]


ALL = torch.ones(6, dtype=torch.bool)
TOKEN_FORMS = [
    (NLL("forget"), by_hand.nll),
    (Ascent(NLL("forget")), lambda *at: -by_hand.nll(*at)),
    (UCE(), by_hand.uce),
    (UCE(half=True), by_hand.uce_half),
    (InvertedHinge(), by_hand.inverted_hinge),
    (UNDIAL(), by_hand.undial(10.0)),
    (UNDIAL(gamma=1.5), by_hand.undial(1.5)),
    (WGA(), by_hand.wga(1.0)),
    (WGA(beta=0.0), by_hand.wga(0.0)),
    (WGA(beta=2.5), by_hand.wga(2.5)),
    (SatImp(), by_hand.satimp(5.0, 1.0)),
    (SatImp(saturation=0.5, importance=2.0), by_hand.satimp(0.5, 2.0)),
    (CEU(skip=0), by_hand.ce_u),
    (LogitMargin(), by_hand.logit_margin),
    (MaxEntropy(), by_hand.to_uniform),
    (MaxEntropy(from_uniform=True), by_hand.from_uniform),
    (KL(), by_hand.kl),
    (KL(reverse=True), by_hand.reverse_kl),
]


@pytest.mark.parametrize(("objective", "form"), TOKEN_FORMS, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("v", [3, 5])
def test_value_per_token_and_its_gradient(objective, form, v):
    """The gradient is that of the hand-written loss by central differences, factors held frozen."""
    z, ref, targets = table(10, 6, v), table(11, 6, v), [y % v for y in TARGETS]
    t = batch(z.clone().requires_grad_(), ref, targets, ROWS)
    values = objective(t)
    (gradient,) = torch.autograd.grad(values.sum(), t.logits)
    for i, y in enumerate(targets):
        here, there = z[i].tolist(), ref[i].tolist()
        assert float(values[i].detach()) == pytest.approx(form(here, y, there, here), rel=1e-10, abs=1e-12)
        for j in range(v):
            up, down = list(here), list(here)
            up[j] += 1e-5
            down[j] -= 1e-5
            slope = (form(up, y, there, here) - form(down, y, there, here)) / 2e-5
            assert float(gradient[i, j]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_npo_per_row(beta):
    t = tokens()
    expected = [by_hand.npo(hand_ratio(t, row), beta) for row in (0, 2, 3)]
    assert NPO(beta=beta)(t).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 0.0), (4.5, 0.3)])
def test_simnpo_per_row(beta, gamma):
    t = tokens()
    expected = [
        by_hand.simnpo(by_hand.log_likelihood(hand_row(t, row)), length, beta, gamma)
        for row, length in ((0, 2), (2, 3), (3, 1))
    ]
    assert SimNPO(beta=beta, gamma=gamma)(t).tolist() == pytest.approx(expected, rel=1e-6)  # lengths are fp32


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_per_row(beta):
    t = tokens()
    expected = [by_hand.dpo(hand_ratio(t.paired, row), hand_ratio(t, row), beta) for row in (0, 2, 3)]
    assert DPO(beta=beta)(t).tolist() == pytest.approx(expected, rel=1e-10)


def test_dpo_with_an_indifferent_winner_is_npo():
    t = tokens()
    winner = replace(t.paired, logits=t.paired.reference.logits)
    torch.testing.assert_close(DPO(beta=0.7)(replace(t, paired=winner)), NPO(beta=0.7)(t))


def test_npo_at_the_reference_has_the_gradient_of_ascent_on_the_whole_response():
    """Zhang et al.: the weight 2 π^β / (π^β + π_ref^β) is 1 there; β → 0 makes it 1 everywhere."""
    t = tokens()
    for objective, logits in ((NPO(beta=0.3), t.reference.logits), (NPO(beta=1e-6), t.logits)):
        found, ascent = gradient(objective, t, logits), gradient(Ascent(NLL("forget")), t, logits)
        torch.testing.assert_close(found, ascent, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("objective", "full"), [(UCE(), True), (UCE(half=True), False), (CEU(skip=0), True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradient_on_the_target_logit_is_p_where_p_rounds_to_one(objective, full, dtype):
    logits = torch.tensor([[100.0, 0.0, 0.0], [-100.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    t = TokenLogits(logits, torch.tensor([0, 0]), torch.tensor([0, 0]))
    values = objective(t)
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 0]) == pytest.approx(float(full), abs=1e-6)
    assert float(logits.grad[1, 0]) == pytest.approx(0.0, abs=1e-6)


def test_uce_is_exact_where_p_rounds_to_one():
    t = TokenLogits(torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([0]))
    assert float(UCE()(t)) == pytest.approx(100 - math.log(2), rel=1e-6)


@pytest.mark.parametrize("objective", [o for o, _ in TOKEN_FORMS] + [NPO(), SimNPO()], ids=lambda o: o.name)
@pytest.mark.parametrize("margin", [100.0, -100.0])
def test_values_and_gradients_are_finite_where_p_rounds_to_one_or_zero(objective, margin):
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    values = objective(batch(logits, torch.tensor([[3.0, 0.0, -1.0]]), [0], [0]))
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()


def test_ceu_leaves_the_first_tokens_of_every_row_alone():
    values = CEU(skip=1)(tokens())
    whole = CEU(skip=0)(tokens())
    assert values.tolist() == pytest.approx((whole * torch.tensor([0, 1, 0, 1, 1, 0])).tolist())
    assert CEU().skip == 1


def test_low_precision_logits_are_scored_in_fp32():
    t = tokens()
    half = replace(
        t,
        logits=t.logits.bfloat16(),
        reference=Reference(t.reference.target_log_probs.float(), logits=t.reference.logits.bfloat16()),
    )
    for objective, _ in TOKEN_FORMS:
        assert objective(half).dtype == torch.float32, objective.name


# Representations


def hidden_tokens(lengths: tuple[int, ...]) -> TokenLogits:
    k = sum(lengths)
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    t = batch(table(0, k), table(1, k), [0] * k, rows)
    held = replace(t.reference, hidden={8: table(5, k, 4)})
    return replace(t, hidden={8: table(4, k, 4), 0: table(6, k, 4)}, reference=held)


def test_steering_is_the_mean_squared_distance_to_a_fixed_direction():
    t, objective = hidden_tokens((2, 1)), Steering(coefficient=3.0, seed=7)
    direction = objective.direction(4).tolist()
    assert math.sqrt(sum(x * x for x in direction)) == pytest.approx(1)
    assert min(direction) >= 0
    expected = [
        sum((h - 3.0 * u) ** 2 for h, u in zip(state, direction, strict=True)) / 4
        for state in t.hidden[8].tolist()
    ]
    assert objective(t).tolist() == pytest.approx(expected)
    assert objective.direction(4).tolist() == direction
    assert Steering(seed=8).direction(4).tolist() != direction


def test_activations_are_matched_entry_by_entry():
    t = hidden_tokens((2, 1))
    pairs = zip(t.hidden[8].tolist(), t.reference.hidden[8].tolist(), strict=True)
    expected = [sum((a - b) ** 2 for a, b in zip(h, r, strict=True)) / 4 for h, r in pairs]
    assert ActivationMatching()(t).tolist() == pytest.approx(expected)
    same = replace(t, hidden=t.reference.hidden)
    assert ActivationMatching()(same).tolist() == [0, 0, 0]


@pytest.mark.parametrize("objective", [Steering(), ActivationMatching()])
def test_rows_of_unequal_length_are_not_broadcast_against_each_other(objective):
    """A peer divides sums of shape (b,) by lengths of shape (b, 1): every row by every length."""
    lengths = (3, 1)
    values = objective(hidden_tokens(lengths))
    assert values.shape == (4,)
    sums = torch.stack([values[:3].sum(), values[3:].sum()])
    defect = float((sums / torch.tensor(lengths)[:, None]).mean())
    right = float((sums / torch.tensor(lengths)).mean())
    assert defect != pytest.approx(right)  # the lengths can tell the two apart
    per_row = hidden_tokens(lengths).sum_rows(values) / hidden_tokens(lengths).row_lengths
    assert float(per_row.mean()) == pytest.approx(right, rel=1e-6)


# Which positions count


def padded() -> TokenLogits:
    """Two rows of six places with prompt and padding."""
    labels = torch.tensor([[-100, -100, 3, 1, -100, -100], [-100, 2, 0, 4, 1, -100]])
    positions = label_positions(labels)
    z, ref = table(20, 12).view(2, 6, 5), table(21, 12).view(2, 6, 5)
    shifted = labels.roll(-1, 1)
    rows = positions.nonzero()[:, 0]
    return batch(z[positions], ref[positions], shifted[positions].tolist(), rows.tolist())


@pytest.mark.parametrize(
    ("objective", "form"),
    [(KL(), by_hand.kl), (UNDIAL(), by_hand.undial(10.0)), (LogitMargin(), by_hand.logit_margin)],
    ids=["kl", "undial", "margin"],
)
def test_prompt_and_padding_do_not_count(objective, form):
    """Peers average KL and UNDIAL over prompt and padding, and flatten logits with an unshifted mask."""
    t = padded()
    assert t.targets.tolist() == [3, 1, 2, 0, 4, 1]  # never −100, which as an index means another token
    at = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]  # the places before the labels, written out
    z, ref = table(20, 12).view(2, 6, 5), table(21, 12).view(2, 6, 5)
    expected = [
        form(z[i].tolist(), y, ref[i].tolist(), z[i].tolist())
        for i, y in zip(at, t.targets.tolist(), strict=True)
    ]
    assert objective(t).tolist() == pytest.approx(expected)


# Selection

MASK = torch.tensor([False, True, True, False, True, False])


@pytest.mark.parametrize(("objective", "form"), TOKEN_FORMS, ids=lambda x: getattr(x, "name", ""))
def test_selected_tokens_alone_give_the_loss(objective, form):
    t = tokens(selected=MASK)
    chosen = Selected(objective, "entities")
    torch.testing.assert_close(chosen(t), objective(t)[MASK])
    assert chosen.needs == replace(objective.needs, selector="entities")
    assert (chosen.source, chosen.unit) == (objective.source, "token")
    assert chosen.name == f"{objective.name}@entities"


def test_generic_labels_are_what_replacement_learns():
    """-log p(label) of each position, written out; the labels of selected tokens go with them."""
    labels = torch.tensor([4, 0, 2, 1, 3, 0])
    t = replace(tokens(selected=MASK), generic=labels)
    objective = Replacement()
    expected = [
        -math.log(by_hand.probs(z)[y]) for z, y in zip(t.logits.tolist(), labels.tolist(), strict=True)
    ]
    assert objective(t).tolist() == pytest.approx(expected)
    torch.testing.assert_close(Selected(objective, "entities")(t), objective(t)[MASK])


def test_selected_rows_are_those_with_a_selected_token():
    t = tokens(selected=MASK)
    rest = batch(t.logits[MASK], t.reference.logits[MASK], [4, 0, 2], [0, 2, 2])
    for objective in (NPO(), SimNPO()):
        torch.testing.assert_close(Selected(objective, "entities")(t), objective(rest))
    pairs = replace(rest, paired=batch(t.paired.logits[:2], t.paired.reference.logits[:2], [2, 0], [0, 2]))
    chosen = Selected(DPO(), "entities")
    torch.testing.assert_close(chosen(t), DPO()(pairs))
    assert chosen.unit == "row"


def test_selected_representations():
    t = replace(hidden_tokens((2, 1)), selected=torch.tensor([True, False, True]))
    for objective in (Steering(), ActivationMatching()):
        torch.testing.assert_close(Selected(objective, "entities")(t), objective(t)[[0, 2]])


@pytest.mark.parametrize("objective", [form[0] for form in TOKEN_FORMS] + [NPO(), SimNPO(), DPO()])
def test_nothing_selected_is_no_value_and_no_gradient(objective):
    t = tokens(selected=~ALL)
    t.logits.requires_grad_()
    values = Selected(objective, "entities")(t)
    assert values.shape == (0,)
    values.sum().backward()
    assert not t.logits.grad.any()


# Contract


@pytest.mark.parametrize(
    ("objective", "name", "source", "unit", "needs"),
    [
        (Ascent(NLL("forget")), "-nll(forget)", "forget", "token", Needs()),
        (Ascent(NPO()), "-npo(forget)", "forget", "row", Needs(reference="log_probs")),
        (UCE(), "uce(forget)", "forget", "token", Needs()),
        (NPO(), "npo(forget)", "forget", "row", Needs(reference="log_probs")),
        (SimNPO(), "simnpo(forget)", "forget", "row", Needs()),
        (DPO("alternate"), "dpo(alternate>forget)", "forget", "row", Needs("log_probs", paired="alternate")),
        (NLL("idk"), "nll(idk)", "idk", "token", Needs()),
        (UNDIAL(), "undial(forget)", "forget", "token", Needs(reference="logits")),
        (KL(), "kl(retain)", "retain", "token", Needs(reference="logits")),
        (Steering(4), "steering(forget)", "forget", "token", Needs(layers=(4,))),
        (ActivationMatching(4), "activations(retain)", "retain", "token", Needs("hidden", layers=(4,))),
        (Replacement(), "replacement(forget)", "forget", "token", Needs(generic=GenericLabels())),
        (
            Replacement(reinforced="folder", alpha=2.0),
            "replacement(forget)",
            "forget",
            "token",
            Needs(generic=GenericLabels("folder", 2.0)),
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_an_objective_says_of_itself(objective, name, source, unit, needs):
    assert (objective.name, objective.source, objective.unit) == (name, source, unit)
    assert objective.needs == needs
    with pytest.raises((FrozenInstanceError, AttributeError)):
        objective.source = "holdout"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NPO(beta=0.0), r"`beta` must be positive and finite; got 0.0"),
        (lambda: SimNPO(beta=-1.0), "`beta` must be positive"),
        (lambda: SimNPO(gamma=math.nan), "`gamma` must be finite; got nan"),
        (lambda: DPO(beta=math.inf), "`beta` must be positive and finite; got inf"),
        (lambda: DPO(preferred="forget"), "`preferred` must be another data set"),
        (lambda: UNDIAL(gamma=0.0), "`gamma` must be positive"),
        (lambda: WGA(beta=-0.5), "`beta` must be non-negative and finite; got -0.5"),
        (lambda: SatImp(saturation=math.nan), "`saturation` must be non-negative"),
        (lambda: SatImp(importance=-1.0), "`importance` must be non-negative"),
        (lambda: CEU(skip=-1), "`skip` must be non-negative; got -1"),
        (lambda: Steering(coefficient=0.0), "`coefficient` must be positive"),
        (lambda: Replacement(reinforced="folder", alpha=0.0), "`alpha` must be positive and finite; got 0.0"),
        (lambda: Selected(Selected(UCE(), "all"), "entities"), "without a selector of its own"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "missing", "message"),
    [
        (NPO(), {"reference": None}, "`tokens.reference` must be given"),
        (KL(), {"reference": Reference(torch.zeros(6))}, "`tokens.reference.logits` must be given"),
        (DPO(), {"paired": None}, "`tokens.paired` must be given"),
        (Replacement(), {"generic": None}, "`tokens.generic` must be given"),
        (Selected(UCE(), "entities"), {}, "`tokens.selected` must be given"),
        (Steering(layer=3), {"hidden": {8: torch.zeros(6, 2)}}, r"must hold layer 3; got layers \[8\]"),
    ],
)
def test_what_is_missing_is_named(objective, missing, message):
    with pytest.raises(ValueError, match=message):
        objective(replace(tokens(), **missing))


def test_a_selector_does_not_move_the_places_that_ce_u_counts():
    """What CE-U leaves alone is the first token of the response, not the first one selected."""
    t = batch(table(10, 6, 5), table(11, 6, 5), [y % 5 for y in TARGETS], ROWS)
    whole = CEU()(t)
    starts = torch.tensor([i == 0 or ROWS[i] != ROWS[i - 1] for i in range(6)])
    assert not whole[starts].any()
    assert whole[~starts].all()
    last = torch.tensor([i == 5 or ROWS[i] != ROWS[i + 1] for i in range(6)])
    chosen = Selected(CEU(), "entities")(replace(t, selected=last))
    torch.testing.assert_close(chosen, whole[last])
    assert chosen[~starts[last]].all(), "one token selected, not the first of its response, counts"
