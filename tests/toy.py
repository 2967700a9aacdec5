"""A table of logits as a model: every recipe, trained by plain gradient steps through the Gramian algebra.

A context is a row of `embeddings`, its residual stream at every depth; `head` turns it into logits. Forget
and retain contexts share the head, so that what is done to one is felt by the other. No Trainer takes part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from expunge.gramian import GradientBuffers
from expunge.methods import Method
from expunge.objectives import NLL, Objective, Reference, TokenLogits
from expunge.phases import Phases
from expunge.weightings import Stateful

ROWS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
CONTEXTS = {
    "forget": torch.arange(8),
    "idk": torch.arange(8),
    "alternate": torch.arange(8),
    "retain": torch.arange(8, 16),
}
LABELS = {
    "forget": (0, 1, 2, 3, 4, 0, 2, 4),
    "idk": (5,) * 8,
    "alternate": (1, 2, 3, 4, 5, 1, 3, 0),
    "retain": (3, 1, 4, 1, 5, 2, 0, 5),
}


class LogitTable(nn.Module):
    """16 contexts in 6 dimensions, 6 words; knows its forget and retain labels well, after `learn`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embeddings = nn.Parameter(torch.randn(16, 6, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))

    def see(self, source: str, layers: Iterable[int] = ()) -> TokenLogits:
        """The label positions of a data set."""
        stream = self.embeddings[CONTEXTS[source]]
        labels = torch.tensor(LABELS[source])
        return TokenLogits(stream @ self.head.T, labels, ROWS, hidden=dict.fromkeys(layers, stream))

    def learn(self, steps: int = 25, rate: float = 0.5) -> None:
        """Fit forget and retain by gradient descent."""
        for _ in range(steps):
            loss = sum(NLL(source)(self.see(source)).mean() for source in ("forget", "retain"))
            for parameter, slope in zip(
                self.parameters(), torch.autograd.grad(loss, [*self.parameters()]), strict=True
            ):
                parameter.data -= rate * slope

    def nll(self, source: str) -> float:
        with torch.no_grad():
            return float(NLL(source)(self.see(source)).mean())


def observation(model: LogitTable, reference: LogitTable, objective: Objective) -> TokenLogits:
    """What an objective asked for, and nothing else."""

    def of(source: str) -> dict[str, object]:
        with torch.no_grad():
            old = reference.see(source, needs.layers)
        whole = {"nothing": None, "log_probs": Reference(old.target_log_probs)}
        whole["logits"] = Reference(old.target_log_probs, logits=old.logits)
        whole["hidden"] = Reference(old.target_log_probs, hidden=old.hidden)
        new = model.see(source, needs.layers)
        chosen = None if needs.selector is None else torch.arange(8) % 2 == 0
        others = old.logits.scatter(1, old.targets[:, None], -torch.inf).argmax(1)
        told = {"reference": whole[needs.reference], "selected": chosen}
        return vars(new) | told | {"generic": None if needs.generic is None else others}

    needs = objective.needs
    paired = None if needs.paired is None else TokenLogits(**of(needs.paired))
    return TokenLogits(**of(objective.source) | {"paired": paired})


def unlearn(model: LogitTable, method: Method, steps: int = 60, length: float = 0.05) -> None:
    """Steps of one length along −d, with d as the engine combines it; of each training, if it is merged."""
    if method.merge:
        phases = Phases(method.merge, dict(model.named_parameters()))
        phases.begin()
        for i, weighting in enumerate((method.weighting, *method.merge.further)):
            if i:
                phases.advance()
            unlearn(model, replace(method, weighting=weighting, budget=None, merge=None), steps, length)
        return phases.place(method.merge.coefficients[0])
    reference = LogitTable()
    reference.load_state_dict(model.state_dict())
    buffers = GradientBuffers([*model.parameters()], len(method.objectives))
    if isinstance(method.weighting, Stateful):
        method.weighting.reset()
    for _ in range(steps):
        losses = torch.zeros(len(method.objectives), dtype=torch.float64)
        for i, objective in enumerate(method.objectives):
            with buffers.collect(i):
                loss = objective(observation(model, reference, objective)).mean()
                loss.backward()
            losses[i] = loss.detach()
        buffers.combine(method.weighting(buffers.gramian(), losses))
        if isinstance(method.weighting, Stateful):
            method.weighting.observe(losses)
        descend([*model.parameters()], length)
        buffers.release()


def descend(parameters: list[nn.Parameter], length: float) -> None:
    """Move by `length` against `.grad`."""
    size = torch.stack([torch.zeros(()) if p.grad is None else p.grad.norm() for p in parameters]).norm()
    for parameter in parameters:
        if parameter.grad is not None and size > 0:
            parameter.data -= length * parameter.grad / size


def assert_raises_forget_loss(method: Method) -> None:
    """The forget NLL rises, by 15 % of its start at the least."""
    model = LogitTable()
    model.learn()
    before = model.nll("forget")
    assert before < 0.2  # known, and not yet so well that p (1 − p) is nothing
    unlearn(model, method)
    after = model.nll("forget")
    assert after > 1.15 * before, (method.name, before, after)
