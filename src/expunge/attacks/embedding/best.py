"""The best point per example that an attack has come by."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.attacks.embedding.balls import along


class Cheapest:
    """Keeps, per example, the point of lowest cost; the start, at infinite cost, where none was offered.

    Attributes:
        points: [b, ...].
        costs: [b].
    """

    def __init__(self, start: Float[Tensor, "b ..."]) -> None:
        self.points = start.detach().clone()
        self.costs = torch.full((len(start),), math.inf, dtype=start.dtype, device=start.device)

    def offer(self, points: Tensor, costs: Tensor) -> None:
        """Take over the points, [b, ...], whose costs, [b], are below those kept."""
        better = costs < self.costs
        self.points = torch.where(along(better, points), points.detach(), self.points)
        self.costs = torch.where(better, costs.detach(), self.costs)
