"""A search that ends when its time is over, with the best point that it had come to by then."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from expunge.attacks.attack import Clock
from expunge.attacks.embedding.balls import Ball
from expunge.attacks.embedding.best import Cheapest
from expunge.attacks.embedding.losses import Predict, margin


class OutOfTimeError(Exception):
    """Raised in place of outputs once time is over."""


class Watched:
    """What an attack asks, while the clock runs; remembers the best of all inputs that were asked about.

    Best, of those in the ball, is the shortest perturbation at which every label is the argmax; where there
    is none, the one at which least is missing of that.

    Args:
        predict: Inputs [b, ...] to logits [b, t, c].
        start: Unperturbed inputs, [b, ...].
        labels: Wanted ones, [b, t].
        ball: Where a perturbation must lie.
        clock: Looked at before every pass but the first.
    """

    def __init__(self, predict: Predict, start: Tensor, labels: Tensor, ball: Ball, clock: Clock) -> None:
        self.predict, self.start, self.labels, self.ball, self.clock = predict, start, labels, ball, clock
        self._best, self._asked = Cheapest(start), False

    def __call__(self, x: Tensor) -> Tensor:
        """Logits.

        Raises:
            OutOfTimeError: Time is over.
        """
        if self._asked and self.clock.over:
            raise OutOfTimeError
        self._asked = True
        outputs = self.predict(x)
        with torch.no_grad():
            self._best.offer(x, self._cost(x.detach(), outputs.detach()))
        return outputs

    def found(self, search: Callable[[Predict], Tensor]) -> tuple[Tensor, bool]:
        """What a search gives, and whether it came to its end; else the best that it had asked about."""
        try:
            return search(self), True
        except OutOfTimeError:
            return self._best.points, False

    def _cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """At most 1 where all labels are reached; above, by what is missing; infinite outside the ball."""
        missing = margin(outputs, self.labels).to(self.start)
        share = self.ball.norm(x - self.start) / self.ball.radius
        cost = torch.where(missing < 0, share, 2 + missing)
        return cost.masked_fill(share > 1 + 1e-5, torch.inf)
