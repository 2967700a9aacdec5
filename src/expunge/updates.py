r"""Updates that use less than the gradient: its sign, or no gradient at all.

Updates that carry less information (the "grade" of an optimizer) end in basins that fine-tuning and
quantisation leave less easily: what was forgotten is harder to relearn (arXiv 2510.00761). Both act on
tensors only and know no model, no Trainer and no objective:

Settings choose them: `update=sign`, `update=zeroth-order`.

* `sign_update` after any optimizer: signSGD, 1-bit Adam and their kin. It gives every coordinate the same
  step length, so the angles to the objectives' gradients change; the guarantees of a weighting hold for d,
  not for its sign.
* `ZerothOrder` replaces backward passes by forward passes along random directions. The estimated
  Gramian of all objectives comes with it, so any weighting goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn


def sign_update(parameters: Sequence[Tensor], before: Sequence[Tensor], learning_rate: float) -> None:
    r"""Turn the step that an optimizer has just made into its sign: $\theta \mp \eta$ on every coordinate.

    After Adam: $\theta_{t+1} = \theta_t - \eta\,\mathrm{sign}(m_t)$, whatever the preconditioner. The state
    of the optimizer is what it is without this call. Decoupled weight decay is part of the step.

    Args:
        parameters: Just after the step.
        before: Copies from just before it.
        learning_rate: η, the length of the new step on every coordinate that moved; positive.

    Example:
        >>> p = torch.tensor([0.9, 2.3, 5.])
        >>> sign_update([p], [torch.tensor([1., 2., 5.])], learning_rate=0.5)
        >>> p
        tensor([0.5000, 2.5000, 5.0000])

    Reference:
        Lang et al. (2025), arXiv 2510.00761.
    """
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive; got {learning_rate}.")
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old + learning_rate * (parameter - old).sign())


@dataclass(frozen=True)
class ZerothOrder:
    r"""Gradients estimated from losses alone, along random directions.

    For directions $u_1 \dots u_q \sim \mathcal{N}(0, I_n)$ and every objective $i$ the slopes are
    $s_{ji} = (L_i(\theta + \mu u_j) - L_i(\theta - \mu u_j)) / 2\mu$: exact on quadratics, off by
    $O(\mu^2)$ otherwise. Then $\hat g_i = \frac1q \sum_j s_{ji} u_j$ is the gradient of $L_i$ smoothed by a
    Gaussian of radius $\mu$, in expectation; its variance is about $\lVert g_i \rVert^2 n / q$. And
    $\hat G = \frac1q S^\top S$ estimates the Gramian without bias, at no extra cost; its rank is at
    most $q$, so a weighting that inverts it needs $q \ge m$.

    Directions are never stored: they are drawn again from the seed. Nothing but one copy of the
    parameters is held, and the parameters are bit-identical after `measure`.

    Args:
        radius: μ, positive.
        queries: q, directions per step, at least 1; each takes two evaluations of all losses.
        every: 1 makes every optimizer step zeroth-order, 2 every second one (the first- and zeroth-order
            hybrid), and so on; at least 1.

    Example:
        >>> p = nn.Parameter(torch.tensor([1., 2.], dtype=torch.float64))
        >>> rule = ZerothOrder(queries=4000)
        >>> slopes = rule.measure([p], lambda: torch.stack([(p**2).sum(), p.sum()]), seed=0)
        >>> rule.combine([p], slopes, torch.tensor([1., 0.]), seed=0)
        >>> bool(torch.allclose(p.grad, 2 * p, rtol=0.1))
        True

    Reference:
        Nesterov and Spokoiny (2017), "Random gradient-free minimization of convex functions";
        Lang et al. (2025), arXiv 2510.00761.
    """

    radius: float = 1e-3
    queries: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise ValueError(f"`radius` must be positive; got {self.radius}.")
        if self.queries < 1 or self.every < 1:
            raise ValueError(f"`queries` and `every` must be at least 1; got {self.queries}, {self.every}.")

    def due(self, step: int) -> bool:
        """Whether this optimizer step (counted from 0) is zeroth-order; with `every` > 1 the first is not."""
        return step % self.every == self.every - 1

    def measure(
        self, parameters: Sequence[nn.Parameter], losses: Callable[[], Float[Tensor, " m"]], seed: int
    ) -> Float[Tensor, "q m"]:
        """Slopes of all objectives along all directions, float64, on the CPU.

        Args:
            parameters: At θ; bit-identical afterwards, also when `losses` raises.
            losses: Evaluates the objectives on one and the same rows, with dropout off or equal random
                numbers; the mean over ranks, so that every rank sees the same slopes.
            seed: Of this step's directions, the same on every rank; the next integer has other directions.
        """
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            with torch.no_grad():
                return torch.stack([self._slopes(parameters, before, losses, s) for s in self._seeds(seed)])
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(parameters), before)

    def gramian(self, slopes: Float[Tensor, "q m"]) -> Float[Tensor, "m m"]:
        """The estimated inner products of the gradients: SᵀS / q."""
        return slopes.T @ slopes / len(slopes)

    def combine(
        self,
        parameters: Sequence[nn.Parameter],
        slopes: Float[Tensor, "q m"],
        weights: Float[Tensor, " m"],
        seed: int,
    ) -> None:
        """Set `.grad` to the estimate of Σ w_i g_i.

        Args:
            parameters: As in `measure`.
            slopes: What `measure` gave.
            weights: From any weighting.
            seed: As in `measure`.
        """
        shares = (slopes.double() @ weights.double() / len(slopes)).tolist()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for own_seed, share in zip(self._seeds(seed), shares, strict=True):
            for parameter, direction in zip(parameters, _direction(parameters, own_seed), strict=True):
                assert parameter.grad is not None
                parameter.grad.add_(direction, alpha=share)

    def _seeds(self, seed: int) -> list[int]:
        """One per direction, of 32 bits: generators on the CPU keep no more of a seed."""
        return [int(own) for own in np.random.SeedSequence(seed).generate_state(self.queries)]

    def _slopes(
        self,
        parameters: Sequence[nn.Parameter],
        before: Sequence[Tensor],
        losses: Callable[[], Float[Tensor, " m"]],
        seed: int,
    ) -> Float[Tensor, " m"]:
        """One direction, both ends."""
        ends = []
        for radius in (self.radius, -self.radius):
            for parameter, old, part in zip(parameters, before, _direction(parameters, seed), strict=True):
                parameter.copy_(old + radius * part)
            ends.append(losses().detach().cpu().double())
        return (ends[0] - ends[1]) / (2 * self.radius)


def _direction(parameters: Sequence[nn.Parameter], seed: int) -> Iterator[Tensor]:
    """Standard normal numbers in the shape of the parameters, one tensor at a time, from the seed alone."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        yield torch.randn(parameter.shape, generator=generators[device], device=device, dtype=parameter.dtype)
