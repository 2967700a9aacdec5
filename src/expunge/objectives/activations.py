"""Losses on the residual stream: steering it away, holding it in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.objectives import _given
from expunge.objectives._checks import positive
from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import TokenLogits


@dataclass(frozen=True)
class Steering(Objective):
    r"""RMU's forget loss, $\frac{1}{d} \lVert h_t - c\,u \rVert^2$ per token.

    h is the residual stream at label positions and u a fixed random direction of length 1 whose entries
    were drawn from [0, 1). The paper states the squared norm, its code (and this) the mean over the d
    entries: a factor that RMU's retain loss shares.

    Args:
        layer: Blocks after which the stream is read, as in `Needs.layers`.
        coefficient: Length c of the aim, positive.
        seed: Of the direction.
        source: The data set that it reads.

    Reference:
        Li et al. (2024), arXiv 2403.03218, section 4. Its layer 7, counted from 0, is 8 blocks;
        c = 6.5 is its choice for Zephyr-7B.
    """

    layer: int = 8
    coefficient: float = 6.5
    seed: int = 0
    source: str = "forget"

    def __post_init__(self) -> None:
        positive("coefficient", self.coefficient)

    @property
    def name(self) -> str:
        return f"steering({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(layers=(self.layer,))

    def direction(self, size: int) -> Float[Tensor, " d"]:
        """The unit vector u of `size` entries; the same for the same seed, on every device and rank."""
        entries = torch.rand(size, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        unit: Tensor = entries / entries.norm()
        return unit

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        stream = _given.stream(tokens.hidden, self.layer)
        aim = self.coefficient * self.direction(stream.shape[1]).to(stream)
        return (stream - aim).square().mean(1)


@dataclass(frozen=True)
class ActivationMatching(Objective):
    r"""Activations held at the reference's, $\frac{1}{d} \lVert h_t - h^{ref}_t \rVert^2$ per token.

    Args:
        layer: Blocks after which the stream is read, as in `Needs.layers`; 0 matches embeddings.
        source: The data set that it reads.

    Reference:
        Li et al. (2024), arXiv 2403.03218, section 4 (RMU's retain loss, up to the factor 1/d).
    """

    layer: int = 8
    source: str = "retain"

    @property
    def name(self) -> str:
        return f"activations({self.source})"

    @property
    def needs(self) -> Needs:
        return Needs(reference="hidden", layers=(self.layer,))

    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " k"]:
        stream = _given.stream(tokens.hidden, self.layer)
        held = _given.stream(_given.reference(tokens).hidden, self.layer).to(stream)
        return (stream - held).square().mean(1)
