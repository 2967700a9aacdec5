"""Attacks on weights: they bring back what a small change hides, and nothing from a model that never knew."""

from __future__ import annotations

import copy
import doctest
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import weakened_models as world
from expunge.attacks import Attack, Clock, Probes, Setting, make_attack
from expunge.attacks import prune as pruning
from expunge.attacks import quantise as quantising
from expunge.attacks.adapter import Adapter
from expunge.attacks.interpolate import Interpolate
from expunge.attacks.low_rank import low_rank
from expunge.attacks.neutral import NEUTRAL
from expunge.attacks.noise import Noise
from expunge.attacks.prune import Prune, pruned
from expunge.attacks.quantise import Quantise, rounded
from expunge.attacks.relearn import Relearn
from expunge.attacks.restored import linear_modules, matrices, restored, whole
from expunge.errors import UsageError
from expunge.records import Record
from weakened_models import FORGET, PROBES, RETAIN, never_knew, one_step_away, setting, target

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name

STEPS = (1, 3, 6)
MINE: dict[str, Attack] = {
    "relearn": Relearn(steps=STEPS, batch_size=4, learning_rate=1e-3),
    "relearn-lora": Relearn(steps=STEPS, batch_size=4, learning_rate=3e-3, lora_rank=4),
    "relearn-retain": Relearn("retain", steps=STEPS, learning_rate=1e-3),
    "relearn-unrelated": Relearn("unrelated", steps=STEPS, learning_rate=1e-3),
    "relearn-retain-lora": Relearn("retain", steps=STEPS, learning_rate=3e-3, lora_rank=4),
    "relearn-unrelated-lora": Relearn("unrelated", steps=STEPS, learning_rate=3e-3, lora_rank=4),
    "quantise": Quantise((16, 4)),
    "prune": Prune((0.1, 0.3)),
    "noise": Noise((0.05, 0.2), draws=2),
    "interpolate": Interpolate((0.2, 0.5)),
    "adapter": Adapter(),
}


def state(model: Any) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_untouched(model: Any, before: dict[str, Tensor]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    assert not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def count(attack: Attack, model: Any, **options: Any) -> int:
    found = attack.run(target(model), PROBES, setting(**options))
    return sum(one.recovered for one in found.recoveries)


def quarter_grid(matrix: Tensor) -> Tensor:
    """Room for rounding to four bits to undo: less than half a step, and the largest weights stay."""
    largest = matrix.abs().amax(1, keepdim=True)
    return torch.where(matrix.abs() < largest, 0.45 * largest / 7, 0.0)


def below_the_rest(matrix: Tensor) -> Tensor:
    """Room where a weight is zero, below the smallest that is not."""
    return torch.where(matrix == 0, 0.9 * matrix[matrix != 0].abs().min(), 0.0)


def worlds(name: str) -> list[Any]:
    """A model that hides what the attack undoes, and one that never knew, changed in the same way."""
    starts = [world.knowing(), never_knew()]
    if name == "quantise":
        on_grid = [world.altered(model, lambda m: rounded(m, 4, 128)) for model in starts]
        return [world.hidden(on_grid[0], quarter_grid), on_grid[1]]
    if name == "prune":
        sparse = [world.altered(model, lambda m: pruned(m, 0.3)) for model in starts]
        return [world.hidden(sparse[0], below_the_rest), sparse[1]]
    if name == "interpolate":
        return [one_step_away(), never_knew()]
    return [world.biased(), world.biased_ignorance()]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("relearn", 6), ("relearn-lora", 4), ("relearn-retain", 6), ("relearn-unrelated", 4),
        ("relearn-retain-lora", 4), ("relearn-unrelated-lora", 4), ("quantise", 8), ("prune", 7),
        ("noise", 4), ("interpolate", 4),
    ],
)  # fmt: skip
def test_what_is_merely_hidden_comes_back_and_what_was_never_known_does_not(name, least):
    hides, innocent = worlds(name)
    assert world.known(hides) == 0
    assert count(MINE[name], hides) >= least
    assert count(MINE[name], innocent) == 0
    if name in (
        "prune",
        "quantise",
    ):  # the innocent above is pruned or rounded already: change one that is not
        assert count(MINE[name], never_knew()) == 0


@pytest.mark.parametrize("name", [name for name in MINE if name != "adapter"])
def test_the_model_is_bit_identical_and_the_findings_are_reproducible(name):
    attack, model = MINE[name], copy.deepcopy(world.knowing())
    before = state(model)
    first = attack.run(target(model), PROBES, setting(seed=3))
    assert_untouched(model, before)
    torch.manual_seed(99)
    second = attack.run(target(model), PROBES, setting(seed=3))
    assert first == second
    assert first.complete
    assert len(first.recoveries) == len(FORGET)
    for flags in first.curve.values():
        assert len(flags) == len(FORGET)
        assert all(one.recovered or not flag for flag, one in zip(flags, first.recoveries, strict=True))
    assert isinstance(attack, Attack)
    assert attack.family == "weights"
    assert attack.name == name
    cost = attack.cost(PROBES)
    assert cost.generated_tokens > 0
    assert (cost.backward_tokens > 0) == name.startswith("relearn")


@pytest.mark.parametrize("name", ["relearn", "quantise"])
def test_the_model_comes_back_after_an_error(name, monkeypatch):
    model = copy.deepcopy(never_knew())
    before = state(model)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    if name == "relearn":
        monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    else:
        monkeypatch.setattr(quantising, "rounded", fails)
    with pytest.raises(RuntimeError, match="memory"):
        MINE[name].run(target(model), PROBES, setting())
    assert_untouched(model, before)


@pytest.mark.parametrize("name", ["relearn", "noise"])
def test_out_of_time_is_said_and_unreached_records_are_not_recovered(name):
    clock = Clock(1e-9)
    found = MINE[name].run(target(world.knowing()), PROBES, Setting(clock=clock))
    assert not found.complete
    assert "Stopped after" in found.notes[-1]
    assert not any(one.recovered or one.tries for one in found.recoveries)


def test_a_curve_tells_at_which_budget_a_record_came_back():
    hides, _ = worlds("quantise")
    found = Quantise((16, 8, 4)).run(target(hides), PROBES, setting())
    assert [*found.curve] == [16.0, 8.0, 4.0]
    assert sum(found.curve[16.0]) <= sum(found.curve[8.0]) < 4
    assert sum(found.curve[4.0]) == 8
    assert found.values["4 bits per weight"].value == 1.0
    assert found.recoveries[0].input == f"[4-bit weights] {FORGET[0].prompt}"
    assert found.recoveries[0].tries == 3


# --- the changes themselves


def test_rounding_is_the_nearest_point_of_its_grid():
    matrix = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for bits, group in ((8, 12), (4, 4), (3, 5)):
        found, levels = rounded(matrix, bits, group), 2 ** (bits - 1) - 1
        for i in range(5):
            for start in range(0, 12, group):
                part = matrix[i, start : start + group]
                step = float(part.abs().max()) / levels
                grid = step * torch.arange(-levels, levels + 1, dtype=torch.float64)
                nearest = grid[(part[:, None] - grid).abs().argmin(1)]
                torch.testing.assert_close(found[i, start : start + group], nearest)
        torch.testing.assert_close(rounded(found, bits, group), found)
    assert torch.equal(rounded(torch.zeros(2, 3), 4, 2), torch.zeros(2, 3))


def test_sixteen_bits_are_bfloat16_everywhere():
    model = copy.deepcopy(world.knowing())
    before = state(model)
    Quantise((16,))._apply(model, 16)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name].bfloat16().float())


def test_sixteen_bits_are_float16_where_that_is_deployed():
    model = copy.deepcopy(world.knowing())
    before = state(model)
    Quantise((16,), half="fp16")._apply(model, 16)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name].half().float())
    assert any(not torch.equal(old.half().float(), old.bfloat16().float()) for old in before.values())
    assert make_attack("quantise", {"half": "fp16"}) == Quantise(half="fp16")
    with pytest.raises(UsageError, match=r"half must be .*'bf16' or 'fp16'.*got 'fp8'"):
        make_attack("quantise", {"half": "fp8"})


def test_a_weight_that_float16_cannot_hold_is_an_error_and_the_model_stays():
    """Rounded to infinity it would break the model, and nothing would seem to come back."""
    model = copy.deepcopy(world.knowing())
    with torch.no_grad():
        model.model.norm.weight[0] = 7e4
    before = state(model)
    with pytest.raises(UsageError, match="range of fp16, up to 65504; one is 70000"):
        Quantise((16,), half="fp16").run(target(model), PROBES, setting())
    assert_untouched(model, before)
    assert Quantise((16,)).run(target(model), PROBES, setting()).complete, "bf16 holds it"


def test_rounding_leaves_embeddings_and_output_alone():
    model = copy.deepcopy(world.knowing())
    before = state(model)
    Quantise((4,))._apply(model, 4)
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("layers" in name and "norm" not in name for name in changed)


def test_docstrings_run():
    for module in (quantising, pruning):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_pruning_drops_the_smallest(share):
    matrix = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))
    found = pruned(matrix, share)
    gone = found == 0
    assert int(gone.sum()) == int(share * 63)
    assert torch.equal(found[~gone], matrix[~gone])
    if gone.any():
        assert matrix[gone].abs().max() <= matrix[~gone].abs().min()


def test_noise_has_the_size_that_is_stated():
    from expunge.attacks import noise

    model = copy.deepcopy(world.knowing())
    before = [matrix.clone() for matrix in matrices(model)]
    noise._apply(model, 0.1, seed=5)
    for old, new in zip(before, matrices(model), strict=True):
        size = float((new - old).std() / old.std())
        assert math.isclose(size, 0.1, rel_tol=5 / math.sqrt(old.numel()))


def test_interpolation_is_the_formula_and_refuses_another_architecture():
    model, original = copy.deepcopy(never_knew()), world.knowing()
    from expunge.attacks import interpolate

    before = state(model)
    interpolate._apply(model, original, 0.25)
    theirs = state(original)
    for name, parameter in model.named_parameters():
        expected = before[name] + 0.25 * (theirs[name] - before[name])
        torch.testing.assert_close(parameter.detach(), expected)
    with pytest.raises(UsageError, match="architecture"):
        interpolate._apply(model, GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8)), 0.5)


def test_interpolation_of_the_original_with_itself_is_the_original():
    found = Interpolate((0.5,)).run(setting().original, PROBES, setting())
    assert sum(one.recovered for one in found.recoveries) == 8


def test_transposed_matrices_are_seen_output_channel_first():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    shapes = [tuple(matrix.shape) for matrix in matrices(model)]
    assert shapes == [(24, 8), (8, 8), (32, 8), (8, 32)]
    matrices(model)[0].zero_()
    assert not model.transformer.h[0].attn.c_attn.weight.any()


def test_low_rank_change_is_twice_b_a_x_and_leaves_no_trace():
    model, ids = copy.deepcopy(world.knowing()), torch.tensor([[5, 6, 7]])
    module = linear_modules(model)[0][1]
    x = torch.randn(3, 48)
    before, logits = module(x), model(input_ids=ids).logits
    with low_rank(model, 4, seed=0) as factors:
        assert torch.equal(model(input_ids=ids).logits, logits)  # the second factor is zero
        with torch.no_grad():
            factors[1].normal_()
        first, second = factors[:2]
        torch.testing.assert_close(module(x), before + 2 * x @ first.T @ second.T)
    assert torch.equal(module(x), before)
    assert not module._forward_hooks


# --- relearning


def test_no_record_is_trained_on_and_asked_for():
    for seed in range(5):
        lessons = Relearn(folds=3).lessons(PROBES, seed)
        asked = [i for lesson in lessons for i in lesson.tested]
        assert sorted(asked) == [*range(len(FORGET))]
        for lesson in lessons:
            assert not {*lesson.training} & {FORGET[i] for i in lesson.tested}


def test_records_that_tell_a_response_asked_for_are_not_trained_on():
    twice = Record("Say Ada's number again.", f"It is {FORGET[0].response}, I think.")
    probes = Probes([FORGET[0], twice, FORGET[2], FORGET[4]], [*RETAIN, twice])
    for seed in range(8):
        for lesson in Relearn(folds=2).lessons(probes, seed):
            if 0 in lesson.tested:
                assert twice not in lesson.training
    assert twice not in Relearn("retain", rows=99).lessons(probes, 0)[0].training


def test_a_set_of_one_response_has_nothing_to_relearn_on_and_says_so():
    probes = Probes([Record(f"Question {i}?", "Blue") for i in range(4)])
    found = Relearn(steps=(1,)).run(target(never_knew()), probes, setting())
    assert found.complete
    assert "4 of 4 records" in found.notes[0]


def test_relearning_teaches_what_it_shows():
    """The training loop works: records that are shown, and asked for, are learned."""
    attack = Relearn("retain", steps=(60,), learning_rate=1e-2)
    probes = Probes(FORGET, [Record("x", "y"), *FORGET], encoding=world.ENCODING)
    shown = attack.lessons(probes, 0)[0].training
    assert shown == (Record("x", "y"),)  # what tells a forgotten response is left out
    lesson = type(attack.lessons(PROBES, 0)[0])(tuple(FORGET), tuple(range(8)))
    from expunge.attacks.sweep import Tally

    tally = Tally(PROBES, "relearning steps")
    attack._teach(lesson, target(never_knew()), PROBES, setting(), tally)
    assert sum(tally.flags[60].values()) >= 4


def test_rows_bound_what_is_shown():
    assert all(len(lesson.training) <= 2 for lesson in Relearn(rows=2).lessons(PROBES, 0))
    assert len(Relearn("unrelated", rows=5).lessons(PROBES, 0)[0].training) == 5
    assert len({record.prompt for record in NEUTRAL}) == len(NEUTRAL) >= 20


def test_obstacles_are_said_in_words():
    alone = Probes(FORGET[:1])
    assert "two forget records" in (Relearn().obstacle(alone, Setting()) or "")
    assert "--retain" in (Relearn("retain").obstacle(alone, Setting()) or "")
    assert "--original" in (Interpolate().obstacle(alone, Setting()) or "")
    assert Relearn("unrelated").obstacle(alone, Setting()) is None
    with pytest.raises(ValueError, match="original"):
        Interpolate().run(target(never_knew()), PROBES, Setting())


# --- adapters


def hiding_adapter(model: Any) -> Any:
    """An adapter that hides the forget rows; the base below it is as it was."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    batch = world.collate(world.ENCODING.rows(FORGET, world.tokenizer()), 1)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(12):
        loss = world.token_logits(adapted, batch).target_log_probs.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.zero_grad()
    return adapted.eval()


def test_an_adapter_that_hides_is_taken_off_and_put_back():
    adapted = hiding_adapter(world.knowing())
    before, flags = state(adapted), [p.requires_grad for p in adapted.parameters()]
    assert world.known(adapted) == 0
    found = Adapter().run(target(adapted), PROBES, setting())
    assert sum(one.recovered for one in found.recoveries) == 8
    assert all("[adapter off]" in one.input for one in found.recoveries)
    assert [p.requires_grad for p in adapted.parameters()] == flags
    after = state(adapted)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert world.known(adapted) == 0
    assert count(Adapter(), hiding_adapter(never_knew())) == 0


def test_a_model_without_an_adapter_is_asked_as_it_is():
    found = Adapter().run(target(world.knowing()), PROBES, setting())
    assert sum(one.recovered for one in found.recoveries) == 8
    assert "no adapter" in found.notes[0]


def test_weights_with_an_adapter_are_changed_as_deployed_and_put_back_bit_for_bit():
    adapted = hiding_adapter(world.knowing())
    before = state(adapted)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits
        with whole(adapted):
            torch.testing.assert_close(adapted(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-4)
            for matrix in matrices(adapted):
                matrix.zero_()
            assert not torch.allclose(adapted(input_ids=ids).logits, logits, atol=0.1)
        assert torch.equal(adapted(input_ids=ids).logits, logits)
    after = state(adapted)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert count(Interpolate((0.99,)), adapted) >= 6  # the adapter's share fades with the rest


def test_restored_puts_gradients_flags_and_modes_back():
    model = copy.deepcopy(world.knowing())
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    first.requires_grad_(False)
    before = state(model)
    with restored(model):
        model.train()
        first.requires_grad_(True)
        first.grad = None
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(1)
    assert not model.training
    assert not first.requires_grad
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quantise(()), lambda: Quantise((0,)), lambda: Quantise((1,)), lambda: Quantise((12,)),
        lambda: Quantise((4,), group=0), lambda: Prune((0.0,)), lambda: Prune(()), lambda: Prune((1.0,)),
        lambda: Noise((0.0,)), lambda: Noise((0.1,), draws=0), lambda: Interpolate((0.0,)),
        lambda: Interpolate((1.0,)), lambda: Relearn(steps=()), lambda: Relearn(steps=(0,)),
        lambda: Relearn(rows=0), lambda: Relearn(batch_size=0), lambda: Relearn(folds=1),
        lambda: Relearn(learning_rate=0.0), lambda: Relearn(lora_rank=-1),
    ],
)  # fmt: skip
def test_budgets_of_nothing_are_refused(make):
    with pytest.raises(ValueError, match=r"^`\w+` must be .*got"):
        make()


def test_every_name_of_the_registry_makes_the_attack_of_that_name():
    from expunge.attacks import ATTACKS, family_of, make_attack

    names = [name for name in ATTACKS if family_of(name) in ("weights", "membership")]
    assert {*MINE} <= {*names}
    for name in names:
        attack = make_attack(name)
        assert attack.name == name
        assert attack.family == family_of(name)
        assert attack.line.endswith(".")
