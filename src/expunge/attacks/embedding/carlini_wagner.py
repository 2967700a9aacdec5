"""Carlini and Wagner's attack: the nearest fooling point in L2, by Adam."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.constant_search import Search, weighed
from expunge.attacks.embedding.losses import LossFn, Predict, check_examples, margin, objective
from expunge.attacks.embedding.shortfall import Shortfall


@dataclass(frozen=True, slots=True)
class CarliniWagner:
    r"""Minimises $\lVert x' - x \rVert_2^2 + c \max(\kappa - f(x'), 0)$ over $x'$ inside the box.

    The box is kept by a change of variables ($x'$ is a tanh of what Adam moves), the constant c is searched
    per example.

    Attributes:
        predict: What is attacked.
        loss_fn: Above 0 where the labels are not what `predict` gives, below 0 where they are: the margin.
        search: For the constant.
        size: Adam's learning rate, positive; of what the tanh is taken of, or of the input where unbounded.
        confidence: $\kappa \ge 0$.
        targeted: Whether labels are those wanted.
        box: Bounds of an input's coordinates.

    Reference:
        Carlini & Wagner (2016), arXiv 1608.04644, section VI.A.
    """

    predict: Predict
    loss_fn: LossFn = margin
    search: Search = field(default_factory=Search)
    size: float = 0.01
    confidence: float = 0.0
    targeted: bool = False
    box: Box = field(default_factory=Box)

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise ValueError(f"`size` must be positive; got {self.size}. It is Adam's learning rate.")

    def perturb(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "n ..."]) -> Float[Tensor, "b ..."]:
        """The nearest fooling inputs that were found; `x` itself where none was.

        Raises:
            ValueError: `x` and `y` do not belong together, or `loss_fn` does not give one loss per example.
        """
        check_examples(x, y)
        gains = objective(self.predict, self.loss_fn, y, targeted=self.targeted)
        shortfall = Shortfall(gains, self.confidence)
        return self.search.cheapest(x, partial(self._minimise, x, shortfall))

    @torch.enable_grad()
    def _minimise(self, x: Tensor, shortfall: Shortfall, constants: Tensor, found: Cheapest) -> None:
        w = self.box.outside(x.detach()).requires_grad_()
        adam = torch.optim.Adam([w], lr=self.size)
        for _ in range(self.search.steps):
            point = self.box.inside(w)
            missing, won = shortfall(point)
            costs = (point - x).square().flatten(1).sum(1)
            found.offer(point, costs.masked_fill(~won, torch.inf))
            (w.grad,) = torch.autograd.grad(weighed(point, x, constants, missing), w)
            adam.step()
