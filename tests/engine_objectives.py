"""Small objectives that ask the engine for everything it can give; used by several test modules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods import Method
from expunge.objectives import NLL, Needs, Objective, TokenLogits
from expunge.weightings import Constant, Normalized


@dataclass(frozen=True)
class Preference(Objective):
    """DPO on (refusal over answer): -log σ(β (log-ratio of the pair - log-ratio of the row)), a row."""

    source: str = "forget"
    pair: str = "idk"
    beta: float = 0.5

    unit = "row"
    name = "preference"

    @property
    def needs(self) -> Needs:
        return Needs(reference="log_probs", paired=self.pair)

    def __call__(self, tokens: TokenLogits) -> Tensor:
        assert tokens.paired is not None
        wanted, unwanted = _log_ratio(tokens.paired), _log_ratio(tokens)
        return -logsigmoid(self.beta * (wanted - unwanted))


@dataclass(frozen=True)
class Drift(Objective):
    """Squared log-ratio to the reference, a token."""

    source: str = "forget"
    selector: str | None = None

    @property
    def name(self) -> str:
        return f"drift({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="log_probs", selector=self.selector)

    def __call__(self, tokens: TokenLogits) -> Tensor:
        assert tokens.reference is not None
        return (tokens.target_log_probs + 1 - tokens.reference.target_log_probs) ** 2


@dataclass(frozen=True)
class Divergence(Objective):
    """KL(reference ‖ model), a token."""

    source: str = "retain"
    name = "divergence"

    @property
    def needs(self) -> Needs:
        return Needs(reference="logits")

    def __call__(self, tokens: TokenLogits) -> Tensor:
        assert tokens.reference is not None
        assert tokens.reference.logits is not None
        old, new = tokens.reference.logits.log_softmax(-1), tokens.scores.log_softmax(-1)
        return (old.exp() * (old - new)).sum(-1)


@dataclass(frozen=True)
class Matching(Objective):
    """Squared distance to the reference's residual stream, a token."""

    source: str = "retain"
    layers: tuple[int, ...] = (-1,)
    shift: float = 0.0
    name = "matching"

    @property
    def needs(self) -> Needs:
        return Needs(reference="hidden", layers=self.layers)

    def __call__(self, tokens: TokenLogits) -> Tensor:
        assert tokens.reference is not None
        pairs = [(tokens.hidden[layer], tokens.reference.hidden[layer]) for layer in self.layers]
        return torch.stack([(a - b + self.shift).square().mean(-1) for a, b in pairs]).sum(0)


@dataclass(frozen=True)
class Even:
    """Weight 1 for all, as a weighting that claims to need gradients: one backward pass per objective.

    Not `Normalized`: a divergence from the start has no gradient there, and noise must not be scaled up.
    """

    needs_gramian = True

    def __call__(self, gramian: Tensor, losses: Tensor) -> Tensor:
        return torch.ones(len(losses), dtype=torch.float64)


def _log_ratio(tokens: TokenLogits) -> Tensor:
    assert tokens.reference is not None
    return tokens.sum_rows(tokens.target_log_probs - tokens.reference.target_log_probs)


def preference() -> Method:
    return Method("preference", (Preference(), NLL("retain")), Normalized())


def preference_fused() -> Method:
    return Method("preference-fused", (Preference(), NLL("retain")), Constant((1.0, 0.5)))


def drift() -> Method:
    return Method("drift", (Drift(), NLL("retain"), Drift("retain")), Constant((1.0, 0.5, 0.25)))


def divergence() -> Method:
    return Method("divergence", (NLL("forget"), Divergence(), NLL("retain")), Even())


def selected() -> Method:
    objectives = (Drift("forget", selector="entities"), NLL("retain"))
    return Method("selected", objectives, Constant((1.0, 1.0)))


METHODS = {m().name: m for m in (preference, preference_fused, drift, divergence, selected)}
