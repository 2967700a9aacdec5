"""DeepFool: the nearest decision boundary of a classifier, taken as linear around each point."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.attacks.embedding.balls import L2, Ball, along
from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.losses import Predict, check_examples


@dataclass(frozen=True, slots=True)
class DeepFool:
    r"""Steps to the nearest boundary of the linearised classifier until it is crossed.

    Towards class k from class y the boundary lies at distance $|z_k - z_y| / \lVert w \rVert_q$ with
    $w = \nabla (z_k - z_y)$ and q dual to the norm; the step goes there along the steepest direction. Exact
    for linear classifiers. Costs one backward pass per candidate class and step.

    Attributes:
        predict: Gives logits [b, c].
        ball: Whose norm is meant; its radius bounds nothing here.
        steps: At most, at least 1.
        overshoot: Share by which the whole perturbation is lengthened, so that the boundary is crossed.
        candidates: Of the wrong classes, the likeliest so many are looked at; at least 1.
        targeted: Whether labels are those wanted; then each step starts from the class of the moment.
        box: Bounds of an input's coordinates.

    Reference:
        Moosavi-Dezfooli et al. (2015), arXiv 1511.04599, algorithm 2 and equations 10-12.
    """

    predict: Predict
    ball: Ball = field(default_factory=L2)
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    targeted: bool = False
    box: Box = field(default_factory=Box)

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("candidates", self.candidates)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. None of them is no attack.")
        if self.overshoot < 0:
            raise ValueError(
                f"`overshoot` must not be negative; got {self.overshoot}. 0 ends on the boundary."
            )

    def perturb(self, x: Float[Tensor, "b ..."], y: Int[Tensor, " n"]) -> Float[Tensor, "b ..."]:
        """Fooling inputs near `x`, or where the steps ended without.

        Raises:
            ValueError: `x` and `y` do not belong together, or `predict` does not give logits [b, c].
        """
        check_examples(x, y)
        total, point = torch.zeros_like(x), x.detach()
        for _ in range(self.steps):
            step, fooled = self._step(point, y)
            if bool(fooled.all()):
                break
            total = torch.where(along(fooled, x), total, total + step)
            point = self.box.clip(x + (1 + self.overshoot) * total)
        return point

    @torch.enable_grad()
    def _step(self, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The shortest step to a boundary, and who is across one already."""
        point = point.detach().requires_grad_()
        logits = self.predict(point)
        if logits.ndim != 2:
            raise ValueError(
                f"`predict` must give logits [b, c]; got shape {tuple(logits.shape)}. Reshape them."
            )
        now = logits.argmax(1)
        home, goals = self._classes(logits.detach(), now, y)
        nearest = Cheapest(torch.zeros_like(point))
        for goal in goals.unbind(1):
            gap = logits.gather(1, home[:, None])[:, 0] - logits.gather(1, goal[:, None])[:, 0]
            (slope,) = torch.autograd.grad(-gap.sum(), point, retain_graph=True)
            length = gap.detach().abs() / self.ball.dual(slope).clamp_min(1e-30)
            nearest.offer(along(length, point) * self.ball.steepest(slope), length)
        return nearest.points, (now == y) if self.targeted else (now != y)

    def _classes(self, logits: Tensor, now: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The class to leave, [b], and those to go to, [b, k]."""
        if self.targeted:
            return now, y[:, None]
        others = logits.scatter(1, y[:, None], -torch.inf)
        return y, others.topk(min(self.candidates, logits.shape[1] - 1), dim=1).indices
