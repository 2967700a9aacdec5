"""How an attack gets at a gradient: by differentiation, or from values alone.

Each takes an objective (inputs [b, ...] -> [b]), a point and a source of random numbers, and gives the
objective's values there, [b], and their gradient, [b, ...].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.embedding.balls import along
from expunge.attacks.embedding.losses import Objective


@runtime_checkable
class Estimator(Protocol):
    """Values and gradient of an objective at a point."""

    def __call__(
        self, objective: Objective, x: Float[Tensor, "b ..."], generator: torch.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b ..."]]:
        """Both for each of b examples."""
        ...


@dataclass(frozen=True, slots=True)
class Backward:
    """The true gradient, by one backward pass."""

    def __call__(
        self, objective: Objective, x: Float[Tensor, "b ..."], generator: torch.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b ..."]]:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            values = objective(point)
            (gradient,) = torch.autograd.grad(values.sum(), point)
        return values.detach(), gradient


@dataclass(frozen=True, slots=True)
class NES:
    r"""Natural evolution strategies: antithetic Gaussian differences.

    $\hat g = \frac{1}{2 \sigma n} \sum_{i=1}^{n} (f(x + \sigma u_i) - f(x - \sigma u_i)) u_i$ with
    $u_i \sim N(0, I)$. Needs 2 n values; the error falls with $\sqrt{d / n}$ for d coordinates.

    Attributes:
        pairs: n, at least 1.
        sigma: Of the search, in units of the input, positive.

    Reference:
        Ilyas et al. (2018), arXiv 1804.08598, algorithm 1.
    """

    pairs: int = 50
    sigma: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.pairs, self.sigma)

    def __call__(
        self, objective: Objective, x: Float[Tensor, "b ..."], generator: torch.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b ..."]]:
        draws = (torch.randn(x.shape, generator=generator).to(x) for _ in range(self.pairs))
        return _differences(objective, x, draws, self.pairs, self.sigma)


@dataclass(frozen=True, slots=True)
class SPSA:
    r"""Simultaneous perturbation stochastic approximation: differences along random signs.

    $\hat g = \frac{1}{n} \sum_i \frac{f(x + \delta v_i) - f(x - \delta v_i)}{2 \delta} v_i^{-1}$ with
    $v_i \in \{-1, 1\}^d$, its own inverse.

    Attributes:
        pairs: n, at least 1.
        delta: Length of the differences, in units of the input, positive.

    Reference:
        Uesato et al. (2018), arXiv 1802.05666, algorithm 1; Spall (1992).
    """

    pairs: int = 50
    delta: float = 1e-2

    def __post_init__(self) -> None:
        _check(self.pairs, self.delta)

    def __call__(
        self, objective: Objective, x: Float[Tensor, "b ..."], generator: torch.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b ..."]]:
        draws = ((torch.randint(0, 2, x.shape, generator=generator) * 2 - 1).to(x) for _ in range(self.pairs))
        return _differences(objective, x, draws, self.pairs, self.delta)


@torch.no_grad()
def _differences(
    objective: Objective, x: Tensor, draws: Iterator[Tensor], pairs: int, length: float
) -> tuple[Tensor, Tensor]:
    """Mean of central differences along the draws, each times its draw."""
    gradient = torch.zeros_like(x)
    for draw in draws:
        rise = objective(x + length * draw) - objective(x - length * draw)
        gradient += along(rise / (2 * length * pairs), x) * draw
    return objective(x), gradient


def _check(pairs: int, length: float) -> None:
    if pairs < 1:
        raise ValueError(f"`pairs` must be at least 1; got {pairs}. Each costs two forward passes.")
    if not length > 0:
        raise ValueError(f"The search length must be positive; got {length}. Differences need a distance.")
