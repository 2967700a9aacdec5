"""Steps of steepest ascent that stay in a ball: one loop, of which most attacks by gradient are cases."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.attacks.embedding.balls import L1, Ball, along
from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.estimators import Backward, Estimator
from expunge.attacks.embedding.losses import LossFn, Predict, check_examples, objective


@dataclass(frozen=True, slots=True)
class Walk:
    r"""How far each step goes, and from where.

    Attributes:
        steps: At least 1.
        size: Length of a step in the ball's norm, in units of the input, positive.
        momentum: $\mu$ in $m \leftarrow \mu m + g / \lVert g \rVert_1$, whose direction a step takes; 0 takes
            the gradient's own (Dong et al. 2017, arXiv 1710.06081, equations 6 and 7).
        random_start: Begin at a random point of the ball, not at the input (Madry et al. 2017).
        seed: Of random starts and of estimators that draw.
    """

    steps: int = 40
    size: float = 0.01
    momentum: float = 0.0
    random_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}. No step is no attack.")
        if not self.size > 0:
            raise ValueError(f"`size` must be positive; got {self.size}. It is the length of a step.")
        if self.momentum < 0:
            raise ValueError(f"`momentum` must not be negative; got {self.momentum}. 0 turns it off.")


@dataclass(frozen=True, slots=True)
class ProjectedGradient:
    r"""Projected steepest ascent, $x_{k+1} = \Pi(x_k + \alpha \, s(g_k))$, and the best point on the way.

    $s$ is the steepest direction of the ball's norm and $\Pi$ projects into the ball, then into the box. For
    the L2 and L1 balls the two projections in turn give a point of both sets, not always the nearest one.
    Coordinates at a bound that the gradient points out of do not take part in a step.

    Attributes:
        predict: What is attacked.
        loss_fn: One loss per example, raised for the true labels or lowered for the wanted ones.
        ball: Where the perturbation must lie; of finite radius if the start is random.
        walk: Steps and their length.
        gradient: True or estimated.
        targeted: Whether labels are those wanted.
        box: Bounds of an input's coordinates.

    Reference:
        Madry et al. (2017), arXiv 1706.06083, section 2.1.
    """

    predict: Predict
    loss_fn: LossFn
    ball: Ball
    walk: Walk = field(default_factory=Walk)
    gradient: Estimator = field(default_factory=Backward)
    targeted: bool = False
    box: Box = field(default_factory=Box)

    def perturb(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "n ..."]) -> Float[Tensor, "b ..."]:
        """Inputs within the ball around `x` at which the loss is as high (targeted: as low) as was found.

        Raises:
            ValueError: `x` and `y` do not belong together, or `loss_fn` does not give one loss per example.
        """
        check_examples(x, y)
        generator = torch.Generator().manual_seed(self.walk.seed)
        gains = objective(self.predict, self.loss_fn, y, targeted=self.targeted)
        point, momentum, best = self._start(x, generator), torch.zeros_like(x), Cheapest(x)
        for _ in range(self.walk.steps):
            values, gradient = self.gradient(gains, point, generator)
            best.offer(point, -values)
            momentum = self.walk.momentum * momentum + _unit(gradient)
            point = self._step(x, point, momentum)
        with torch.no_grad():
            best.offer(point, -gains(point))
        return best.points

    def _start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.box.clip(x + self.ball.sample(x, generator)) if self.walk.random_start else x.detach()

    def _step(self, x: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        direction = direction * self.box.movable(point, direction)
        moved = point + self.walk.size * self.ball.steepest(direction)
        return self.box.clip(x + self.ball.project(moved - x))


def _unit(gradient: Tensor) -> Tensor:
    return gradient / along(L1().norm(gradient).clamp_min(1e-30), gradient)
