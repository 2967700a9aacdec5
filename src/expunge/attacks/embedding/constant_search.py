"""Binary search for the constant that weighs success against distance, per example.

Shared by attacks that minimise `distance + constant x shortfall`: a small constant gives points that are near
and fail, a large one points that succeed and are far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.embedding.best import Cheapest

Attempt = Callable[[Tensor, Cheapest], None]
"""Minimises for given constants, [b], and offers the successful points it comes by."""


@dataclass(frozen=True, slots=True)
class Search:
    """How the constant is sought.

    Attributes:
        constant: Of the first round, positive; times 10 as long as a round has no success.
        rounds: Of the search, at least 1.
        steps: Of minimisation in each round, at least 1.

    Reference:
        Carlini & Wagner (2016), arXiv 1608.04644, section V.A.
    """

    constant: float = 1e-2
    rounds: int = 9
    steps: int = 200

    def __post_init__(self) -> None:
        if not self.constant > 0:
            raise ValueError(f"`constant` must be positive; got {self.constant}. It is searched from there.")
        for name, value in (("rounds", self.rounds), ("steps", self.steps)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. None of them is no attack.")

    def cheapest(self, x: Float[Tensor, "b ..."], attempt: Attempt) -> Float[Tensor, "b ..."]:
        """The cheapest successful point of all rounds; `x` itself where there is none."""
        best = Cheapest(x)
        constants = x.new_full((len(x),), self.constant)
        low, high = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
        for _ in range(self.rounds):
            found = Cheapest(x)
            attempt(constants, found)
            best.offer(found.points, found.costs)
            won = found.costs.isfinite()
            low, high = torch.where(won, low, constants), torch.where(won, constants, high)
            constants = torch.where(high.isfinite(), (low + high) / 2, constants * 10)
        return best.points


def weighed(point: Tensor, x: Tensor, constants: Tensor, shortfall: Tensor) -> Tensor:
    """Sum over the batch of squared distance, [b, ...], plus constant times shortfall, [b]."""
    return (constants * shortfall).sum() + (point - x).square().sum()
