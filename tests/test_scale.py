"""What makes large models possible changes nothing but memory and time, by as much as is stated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchjd.aggregation import MGDAWeighting

from conftest import build_model, rows
from expunge import Unlearner, UnlearningArguments, UsageError, unlearn
from expunge.gramian import GradientBuffers
from expunge.methods import METHODS, Method
from expunge.objectives import KL, NLL, UCE, Ascent, Reference, TokenLogits, _chunks
from expunge.weightings import MinNorm, Normalized, TorchJD


def unlearner(tokenizer, folder, method, **settings) -> Unlearner:
    method = METHODS[method]() if isinstance(method, str) else method
    defaults = {"max_steps": 12, "learning_rate": 1e-3, "check_every": 0, "diagnose_every": 0}
    args = UnlearningArguments(
        output_dir=str(folder),
        bf16=False,
        use_cpu=True,
        template="none",
        save_strategy=settings.pop("save_strategy", "no"),
        per_device_train_batch_size=4,
        **defaults | settings,
    )
    return Unlearner(
        build_model(), args, method, tokenizer, forget_dataset=rows()[:6], retain_dataset=rows()[6:]
    )


def trained(*args, **settings) -> tuple[Unlearner, torch.Tensor]:
    run = unlearner(*args, **settings)
    run.train()
    return run, torch.cat([p.detach().reshape(-1) for p in run.trained.parameters()])


# --- refresh_every ---------------------------------------------------------------------------------


def test_refreshing_every_step_is_the_plain_method(tokenizer, tmp_path):
    _, plain = trained(tokenizer, tmp_path, "ngdiff-gen")
    _, refreshed = trained(tokenizer, tmp_path, "ngdiff-gen", refresh_every=1)
    assert torch.equal(plain, refreshed)


def test_weights_are_carried_with_one_backward_pass_in_between(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, "ngdiff-gen", refresh_every=4)
    passes, steps = [0], []
    backward = run.descent.backward

    def counted(*args, **kwargs):
        passes[0] += 1
        backward(*args, **kwargs)

    run.descent.backward = counted
    run.train()
    steps = run.history
    assert passes[0] == 3 * 2 + 9
    for i, step in enumerate(steps):
        assert bool(step.gradient_norms) == (i % 4 == 0)
        assert step.weights == steps[i - i % 4].weights
        if i % 4 == 0:
            for name, norm in step.gradient_norms.items():
                assert step.weights[name] == pytest.approx(1 / norm)
    stale = [step.carried_cosine for step in steps]
    assert stale[0] is None
    assert all(found is not None and 0.9 < found <= 1 for found in stale[4::4])
    assert {*stale[1:4], *stale[5:8]} == {None}


def test_the_carried_direction_is_near_the_exact_one(tokenizer, tmp_path):
    """The logged cosine is that of Σ w'g and Σ w g, formed here from the gradients themselves."""
    run = unlearner(tokenizer, tmp_path, "ngdiff-gen", refresh_every=3, max_steps=4)
    held = {}
    combine = GradientBuffers.combine

    def keep(buffers, weights):
        held[len(held)] = [[g.clone() for g in gradient] for gradient in buffers.gradients], weights
        combine(buffers, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientBuffers, "combine", keep)
        run.train()
    (_, old), (gradients, new) = held[0], held[1]
    flat = torch.stack([torch.cat([g.reshape(-1) for g in gradient]) for gradient in gradients]).double()
    expected = torch.cosine_similarity(old @ flat, new @ flat, dim=0)
    assert run.history[3].carried_cosine == pytest.approx(float(expected), abs=1e-6)


OBJECTIVES = (Ascent(NLL("forget")), NLL("retain"))


@pytest.mark.parametrize("weighting", [Normalized(), MinNorm(), TorchJD(MGDAWeighting())], ids=repr)
def test_any_gradient_weighting_refreshes(weighting, tokenizer, tmp_path):
    run, _ = trained(tokenizer, tmp_path, Method("m", OBJECTIVES, weighting), refresh_every=3, max_steps=4)
    assert run.history[1].weights == run.history[0].weights != run.history[3].weights


@pytest.mark.parametrize("method", ["grad-diff", "pdu"])
def test_refreshing_is_refused_where_it_means_nothing(method, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`refresh_every` must be 1 for method"):
        unlearner(tokenizer, tmp_path, method, refresh_every=2)


def test_a_resumed_run_carries_the_same_weights(tokenizer, tmp_path):
    settings = {"refresh_every": 5, "save_strategy": "steps", "save_steps": 7, "save_total_limit": 3}
    _, straight = trained(tokenizer, tmp_path, "ngdiff", **settings)
    again = unlearner(tokenizer, tmp_path, "ngdiff", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert torch.equal(straight, torch.cat([p.detach().reshape(-1) for p in again.trained.parameters()]))


# --- gradient buffers ------------------------------------------------------------------------------


def filled(keep: str, weights: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gramian, combination and products of three objectives over two micro-batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
    buffers = GradientBuffers([*net.parameters()], 3, keep)
    for _ in range(2):
        x = torch.randn(9, 20)
        for i in range(3):
            with buffers.collect(i):
                net(x)[:, i].square().mean().backward()
    gramian = buffers.gramian()
    buffers.combine(torch.tensor(weights))
    products, _ = buffers.products([torch.ones_like(p) for p in net.parameters()])
    return gramian, torch.cat([p.grad.reshape(-1) for p in net.parameters()]), products


@pytest.mark.parametrize("weights", [[1.0, -2.0, 0.5], [1.0, -2.0, 0.0]])
def test_buffers_on_the_host_are_exact_and_those_in_bf16_nearly(weights):
    exact = filled("fp32", weights)
    for ours, theirs in zip(filled("cpu", weights), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(filled("bf16", weights), exact, strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        assert 1e-6 < error < 2 * 2**-8  # two micro-batches, each rounded to 8 bits


def test_buffers_take_half_the_memory_in_bf16():
    net = nn.Linear(40, 50)
    sizes = {}
    for keep in ("fp32", "bf16"):
        buffers = GradientBuffers([*net.parameters()], 2, keep)
        with buffers.collect(0):
            net(torch.randn(3, 40)).sum().backward()
        sizes[keep] = sum(g.numel() * g.element_size() for g in buffers.gradients[0])
    assert sizes["bf16"] * 2 == sizes["fp32"]


@pytest.mark.parametrize("keep", ["bf16", "cpu"])
def test_a_run_with_other_buffers_stays_near(keep, tokenizer, tmp_path):
    _, plain = trained(tokenizer, tmp_path, "ngdiff-gen", max_steps=6, optim="sgd", learning_rate=1e-2)
    run, found = trained(
        tokenizer, tmp_path, "ngdiff-gen", max_steps=6, optim="sgd", learning_rate=1e-2, gradient_buffers=keep
    )
    assert run.descent.keep == keep
    error = float((found - plain).norm() / plain.norm())
    assert error < (1e-6 if keep == "cpu" else 1e-3)
    assert keep == "cpu" or error > 0


# --- activation checkpointing and chunked losses ----------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", ["ngdiff", METHODS["rmu"](layer=1), "mollm"])
def test_activation_checkpointing_changes_nothing(method, tokenizer, tmp_path):
    """Also where objectives share a forward pass, and where hidden states are caught inside blocks."""
    settings = {"max_steps": 3, "learning_rate": 1e-4}
    _, plain = trained(tokenizer, tmp_path, method, **settings)
    run, checkpointed = trained(tokenizer, tmp_path, method, gradient_checkpointing=True, **settings)
    layer = run.trained.model.layers[0]
    assert layer.gradient_checkpointing or layer.activation_checkpointing
    assert torch.equal(plain, checkpointed)


def tokens(width: int = 37, count: int = 50, dtype=torch.float64) -> TokenLogits:
    torch.manual_seed(1)
    logits = (3 * torch.randn(count, width, dtype=dtype)).requires_grad_()
    other = torch.randn(count, width, dtype=dtype)
    targets = torch.randint(width, (count,))
    reference = Reference(other.log_softmax(1).gather(1, targets[:, None])[:, 0], logits=other)
    return TokenLogits(logits, targets, torch.arange(count) // 5, reference=reference)


LOSSES = [NLL("retain"), KL(), KL(reverse=True), UCE()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_chunked_losses_equal_whole_ones(loss, monkeypatch):
    whole = tokens()
    expected = loss(whole)
    slope = torch.autograd.grad((expected * torch.arange(50)).sum(), whole.logits)[0]
    monkeypatch.setattr(_chunks, "ELEMENTS", 37 * 7)
    cut = replace(whole)
    found = loss(cut)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    again = torch.autograd.grad((found * torch.arange(50)).sum(), cut.logits)[0]
    torch.testing.assert_close(again, slope, rtol=1e-12, atol=1e-12)


class Widest(TorchDispatchMode):
    """The largest fp32 result of any operation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_no_fp32_tensor_of_all_logits_lives(loss, monkeypatch):
    found = {}
    for elements in (10**9, 64 * 16):
        monkeypatch.setattr(_chunks, "ELEMENTS", elements)
        seen = tokens(width=64, count=256, dtype=torch.bfloat16)
        with Widest() as widest:
            loss(seen).sum().backward()
        found[elements] = widest.elements
    assert found[10**9] >= 64 * 256
    assert found[64 * 16] <= 64 * 16


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_an_adapter_trains_in_fp32_on_a_base_in_bf16(tokenizer, tmp_path, model_folder):
    """As the command line loads it; the adapter alone is saved."""
    sets = {"forget": rows()[:6], "retain": rows()[6:]}
    settings = {"lora_rank": 4, "lora_bf16": True, "lora_merge": False, "max_steps": 3, "check_every": 0}
    result = unlearn(str(model_folder), **sets, output=tmp_path / "out", evaluate=False, seed=0, **settings)
    kinds = {name.rpartition("lora_")[1]: p.dtype for name, p in result.model.named_parameters()}
    assert kinds == {"": torch.bfloat16, "lora_": torch.float32}
    assert (tmp_path / "out" / "model" / "adapter_model.safetensors").is_file()
    assert any(p.any() for name, p in result.model.named_parameters() if "lora_B" in name)
    with pytest.raises(ValueError, match=r"`lora_merge` must be False with .*`lora_bf16`"):
        UnlearningArguments(output_dir=str(tmp_path), use_cpu=True, lora_rank=4, lora_bf16=True)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_an_adapter_on_a_base_in_bf16_resumes_bit_for_bit(tmp_path, model_folder, monkeypatch):
    """The base is loaded anew, and its hash in bf16 is what the checkpoint was made with."""
    sets = {"forget": rows()[:6], "retain": rows()[6:], "evaluate": False, "seed": 0}
    settings = {"lora_rank": 4, "lora_bf16": True, "lora_merge": False, "max_steps": 4, "check_every": 0}
    settings |= sets | {"template": "none", "bf16": False, "learning_rate": 1e-3}
    straight = unlearn(str(model_folder), output=tmp_path / "straight", **settings)
    original = Unlearner.after_optimizer

    def interrupting(run):
        original(run)
        run.interrupt.requested = run.state.global_step == 1

    with monkeypatch.context() as patched:
        patched.setattr(Unlearner, "after_optimizer", interrupting)
        broken = unlearn(str(model_folder), output=tmp_path / "out", **settings)
    assert broken.record.stop.reason == "interrupted"
    wide = settings | {"lora_bf16": False}
    with pytest.raises(UsageError, match="--resume"):
        unlearn(str(model_folder), output=tmp_path / "out", resume=True, **wide)
    resumed = unlearn(str(model_folder), output=tmp_path / "out", resume=True, **settings)
    assert len(resumed.record.history) == 4
    assert resumed.record.models["before"].sha256 == straight.record.models["before"].sha256
    assert resumed.record.models["after"].sha256 == straight.record.models["after"].sha256
    for (name, ours), theirs in zip(
        resumed.model.named_parameters(), straight.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
