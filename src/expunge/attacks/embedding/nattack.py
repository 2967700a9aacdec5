"""NAttack: a Gaussian around the input whose samples fool, learned from values alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.attacks.embedding.balls import Ball, along
from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.losses import LossFn, Objective, Predict, check_examples, margin, objective
from expunge.attacks.embedding.projected_gradient import Walk


@dataclass(frozen=True, slots=True)
class NAttack:
    r"""Searches the mean $\mu$ of $N(\mu, \sigma^2 I)$ over inputs mapped out of their box.

    Samples are mapped into the box and projected into the ball; with their losses standardised to
    $\hat F_i$ over the population, $\mu \leftarrow \mu + \frac{\eta}{b \sigma} \sum_i \hat F_i
    \epsilon_i$. The best sample ever seen is kept.

    Attributes:
        predict: What is attacked; needs no gradient.
        loss_fn: One loss per example, raised for the true labels or lowered for the wanted ones.
        ball: Where the perturbation must lie, of finite radius.
        walk: Steps, their rate $\eta$ (`size`), and the seed; without momentum or random start.
        population: b, at least 2.
        sigma: Positive; in units of the input, or of its arctanh where there is a box.
        targeted: Whether labels are those wanted.
        box: Bounds of an input's coordinates.

    Reference:
        Li et al. (2019), arXiv 1905.00441, algorithm 1 (the mean starts at the input here).
    """

    predict: Predict
    loss_fn: LossFn = margin
    ball: Ball = field(kw_only=True)
    walk: Walk = field(default_factory=lambda: Walk(steps=100, size=0.02))
    population: int = 100
    sigma: float = 0.1
    targeted: bool = False
    box: Box = field(default_factory=Box)

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ValueError(f"`population` must be at least 2; got {self.population}. Losses are compared.")
        if not self.sigma > 0:
            raise ValueError(f"`sigma` must be positive; got {self.sigma}. Samples need a spread.")
        if self.walk.momentum or self.walk.random_start:
            raise ValueError(
                "`walk` must have no momentum and no random start; NAttack knows neither. Drop them."
            )

    @torch.no_grad()
    def perturb(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "n ..."]) -> Float[Tensor, "b ..."]:
        """The inputs within the ball at which the loss was highest (targeted: lowest).

        Raises:
            ValueError: `x` and `y` do not belong together, or `loss_fn` does not give one loss per example.
        """
        check_examples(x, y)
        generator = torch.Generator().manual_seed(self.walk.seed)
        gains = objective(self.predict, self.loss_fn, y, targeted=self.targeted)
        mean, best = self.box.outside(x), Cheapest(x)
        best.offer(x, -gains(x))
        for _ in range(self.walk.steps):
            draws = torch.randn(self.population, *x.shape, generator=generator).to(x)
            values = torch.stack([self._try(mean + self.sigma * draw, x, gains, best) for draw in draws])
            spread = values.std(0).clamp_min(1e-30)
            standard = (values - values.mean(0)) / spread
            move = sum(along(weight, x) * draw for weight, draw in zip(standard, draws, strict=True))
            mean = mean + self.walk.size / (self.population * self.sigma) * move
        return best.points

    def _try(self, w: Tensor, x: Tensor, gains: Objective, best: Cheapest) -> Tensor:
        point = self.box.clip(x + self.ball.project(self.box.inside(w) - x))
        values = gains(point)
        best.offer(point, -values)
        return values
