"""Decoupled direction and norm: the nearest fooling point in L2, in few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.attacks.embedding.balls import L2, along
from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.losses import LossFn, Predict, check_examples, cross_entropy, margin, objective


@dataclass(frozen=True, slots=True)
class DDN:
    r"""The loss decides the direction, success decides the norm.

    Each step adds a normalised gradient of shrinking length to $\delta$, then puts $\delta$ on a sphere
    whose radius is $1 - \gamma$ of the last one where the attack had succeeded, $1 + \gamma$ of it where not.

    Attributes:
        predict: What is attacked.
        loss_fn: Gives the direction.
        gains: Above 0 where the labels are not what `predict` gives, below 0 where they are.
        steps: At least 1.
        gamma: In (0, 1).
        scale: First radius and first step, in units of the input; a guess at the norm that it takes.
        targeted: Whether labels are those wanted.
        box: Bounds of an input's coordinates.

    Reference:
        Rony et al. (2018), arXiv 1811.09600, algorithm 1 (scale 1, steps along a cosine from 1 to 0.01).
    """

    predict: Predict
    loss_fn: LossFn = cross_entropy
    gains: LossFn = margin
    steps: int = 100
    gamma: float = 0.05
    scale: float = 1.0
    targeted: bool = False
    box: Box = field(default_factory=Box)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}. No step is no attack.")
        if not 0 < self.gamma < 1:
            raise ValueError(f"`gamma` must be in (0, 1); got {self.gamma}. It is a share of the radius.")
        if not self.scale > 0:
            raise ValueError(f"`scale` must be positive; got {self.scale}. It is the first radius.")

    def perturb(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "n ..."]) -> Float[Tensor, "b ..."]:
        """The nearest fooling inputs that were found; `x` itself where none was.

        Raises:
            ValueError: `x` and `y` do not belong together, or a loss is not one number per example.
        """
        check_examples(x, y)
        best, sphere, delta = Cheapest(x), x.new_full((len(x),), self.scale), torch.zeros_like(x)
        point = x.detach()
        for k in range(self.steps):
            won, gradient = self._look(point, y)
            best.offer(point, L2().norm(point - x).masked_fill(~won, torch.inf))
            delta = delta + self._length(k) * L2().steepest(gradient)
            sphere = sphere * torch.where(won, 1 - self.gamma, 1 + self.gamma)
            delta = along(sphere, x) * L2().steepest(delta)
            point = self.box.clip(x + delta)
            delta = point - x
        won, _ = self._look(point, y)
        best.offer(point, L2().norm(point - x).masked_fill(~won, torch.inf))
        return best.points

    def _length(self, step: int) -> float:
        return self.scale * (0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    @torch.enable_grad()
    def _look(self, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Who has been fooled, and the gradient of what fools; one pass for both."""
        point = point.detach().requires_grad_()
        outputs = self.predict(point)
        value = objective(lambda _: outputs, self.loss_fn, y, targeted=self.targeted)(point)
        gain = objective(lambda _: outputs, self.gains, y, targeted=self.targeted)(point)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        return gain.detach() > 0, gradient
