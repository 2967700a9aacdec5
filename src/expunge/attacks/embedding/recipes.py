"""The named attacks by projected gradient: choices of ball, walk and gradient, and nothing else."""

from __future__ import annotations

import math

from expunge.attacks.embedding.balls import L2, Ball, LInf
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.estimators import NES, SPSA, Backward
from expunge.attacks.embedding.losses import LossFn, Predict
from expunge.attacks.embedding.projected_gradient import ProjectedGradient, Walk


def fgsm(
    predict: Predict, loss_fn: LossFn, radius: float, *, targeted: bool = False, box: Box | None = None
) -> ProjectedGradient:
    r"""One step along the signs of the gradient, $x + \epsilon \, \mathrm{sign}(\nabla_x J)$.

    Reference:
        Goodfellow et al. (2014), arXiv 1412.6572, section 4.
    """
    return ProjectedGradient(
        predict, loss_fn, LInf(radius), Walk(1, radius), Backward(), targeted, box or Box()
    )


def fgm(
    predict: Predict, loss_fn: LossFn, radius: float, *, targeted: bool = False, box: Box | None = None
) -> ProjectedGradient:
    r"""One step along the gradient, $x + \epsilon \nabla_x J / \lVert \nabla_x J \rVert_2$.

    Reference:
        Miyato et al. (2016), arXiv 1605.07725, equation 2 of section 3.
    """
    return ProjectedGradient(
        predict, loss_fn, L2(radius), Walk(1, radius), Backward(), targeted, box or Box()
    )


def pgd(
    predict: Predict,
    loss_fn: LossFn,
    ball: Ball,
    *,
    steps: int = 40,
    targeted: bool = False,
    box: Box | None = None,
    seed: int = 0,
) -> ProjectedGradient:
    """Many steps from a random point of the ball; 2.5 radii of way in all, so that any point can be reached.

    Reference:
        Madry et al. (2017), arXiv 1706.06083, section 2.1.
    """
    walk = Walk(steps, _stride(ball, steps), random_start=True, seed=seed)
    return ProjectedGradient(predict, loss_fn, ball, walk, Backward(), targeted, box or Box())


def momentum(
    predict: Predict,
    loss_fn: LossFn,
    ball: Ball,
    *,
    steps: int = 10,
    decay: float = 1.0,
    targeted: bool = False,
    box: Box | None = None,
) -> ProjectedGradient:
    """Steps along a running sum of the gradients (MI-FGSM in the L-infinity ball).

    Reference:
        Dong et al. (2017), arXiv 1710.06081, algorithm 1: steps of radius / steps, decay 1.
    """
    walk = Walk(steps, _finite(ball) / steps, momentum=decay)
    return ProjectedGradient(predict, loss_fn, ball, walk, Backward(), targeted, box or Box())


def nes(
    predict: Predict,
    loss_fn: LossFn,
    ball: Ball,
    *,
    steps: int = 40,
    estimator: NES | None = None,
    targeted: bool = False,
    box: Box | None = None,
) -> ProjectedGradient:
    """Projected steps along a gradient estimated from values alone, by Gaussian differences.

    Reference:
        Ilyas et al. (2018), arXiv 1804.08598, section 2.
    """
    walk = Walk(steps, _stride(ball, steps))
    return ProjectedGradient(predict, loss_fn, ball, walk, estimator or NES(), targeted, box or Box())


def spsa(
    predict: Predict,
    loss_fn: LossFn,
    ball: Ball,
    *,
    steps: int = 40,
    estimator: SPSA | None = None,
    targeted: bool = False,
    box: Box | None = None,
) -> ProjectedGradient:
    """Projected steps along a gradient estimated from values alone, by differences along random signs.

    Reference:
        Uesato et al. (2018), arXiv 1802.05666, section 4; steepest steps here, Adam's there.
    """
    walk = Walk(steps, _stride(ball, steps))
    return ProjectedGradient(predict, loss_fn, ball, walk, estimator or SPSA(), targeted, box or Box())


def _stride(ball: Ball, steps: int) -> float:
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}. No step is no attack.")
    return 2.5 * _finite(ball) / steps


def _finite(ball: Ball) -> float:
    if not math.isfinite(ball.radius):
        raise ValueError(
            "`ball` must have a finite radius; got infinity. Give one, or use a minimal-norm attack."
        )
    return ball.radius
