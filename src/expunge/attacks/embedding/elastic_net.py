"""The elastic-net attack (EAD): the nearest fooling point in a mixture of L1 and L2, by shrinking steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.attacks.embedding.balls import L1
from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.constant_search import Search, weighed
from expunge.attacks.embedding.losses import LossFn, Predict, check_examples, margin, objective
from expunge.attacks.embedding.shortfall import Shortfall


@dataclass(frozen=True, slots=True)
class ElasticNet:
    r"""Minimises $\beta \lVert \delta \rVert_1 + \lVert \delta \rVert_2^2 + c \max(-f(x + \delta), 0)$.

    Accelerated proximal gradient (FISTA): a gradient step on the smooth part, then every coordinate of
    $\delta$ is shrunk towards 0 by $\beta$ times the step's size (the exact proximal step; the paper's
    equation 5 shrinks by $\beta$ itself). Steps shorten as $\sqrt{1 - k / K}$. Among successful points the
    one of least elastic-net distance is kept.

    Attributes:
        predict: What is attacked.
        loss_fn: Above 0 where the labels are not what `predict` gives, below 0 where they are: the margin.
        beta: Weight of the L1 norm, at least 0; 0 is Carlini and Wagner's distance.
        search: For the constant c.
        size: Of the first step, positive.
        targeted: Whether labels are those wanted.
        box: Bounds of an input's coordinates.

    Reference:
        Chen et al. (2017), arXiv 1709.04114, algorithm 1 and equations 4-6.
    """

    predict: Predict
    loss_fn: LossFn = margin
    beta: float = 1e-2
    search: Search = field(default_factory=Search)
    size: float = 0.01
    targeted: bool = False
    box: Box = field(default_factory=Box)

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise ValueError(f"`size` must be positive; got {self.size}. It is the first step's.")
        if self.beta < 0:
            raise ValueError(f"`beta` must not be negative; got {self.beta}. It is the weight of a norm.")

    def perturb(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "n ..."]) -> Float[Tensor, "b ..."]:
        """The nearest fooling inputs that were found; `x` itself where none was.

        Raises:
            ValueError: `x` and `y` do not belong together, or `loss_fn` does not give one loss per example.
        """
        check_examples(x, y)
        shortfall = Shortfall(objective(self.predict, self.loss_fn, y, targeted=self.targeted))
        return self.search.cheapest(x, partial(self._minimise, x, shortfall))

    def _minimise(self, x: Tensor, shortfall: Shortfall, constants: Tensor, found: Cheapest) -> None:
        point, ahead = x.detach(), x.detach()
        for k in range(self.search.steps):
            size = self.size * math.sqrt(1 - k / self.search.steps)
            moved = self._shrunk(ahead - size * _slope(ahead, x, shortfall, constants) - x, size)
            before, point = point, self.box.clip(x + moved)
            ahead = point + k / (k + 3) * (point - before)
            with torch.no_grad():
                _, won = shortfall(point)
            found.offer(point, self._distance(point - x).masked_fill(~won, torch.inf))

    def _shrunk(self, delta: Tensor, size: float) -> Tensor:
        return delta.sign() * (delta.abs() - size * self.beta).clamp_min(0)

    def _distance(self, delta: Tensor) -> Tensor:
        return self.beta * L1().norm(delta) + delta.square().flatten(1).sum(1)


@torch.enable_grad()
def _slope(point: Tensor, x: Tensor, shortfall: Shortfall, constants: Tensor) -> Tensor:
    """Gradient of the smooth part of the objective."""
    point = point.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(weighed(point, x, constants, shortfall(point)[0]), point)
    return gradient
