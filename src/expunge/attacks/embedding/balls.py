"""Norm balls around an input: how long a perturbation is, which way is steepest, where it may end.

A tensor holds b perturbations along its first axis; each is measured over all its other axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

_LEAST = 1e-30
"""What lengths are divided by at least, so that no direction is 0 / 0."""


@runtime_checkable
class Ball(Protocol):
    """All perturbations whose norm is at most `radius`; with an infinite radius, a norm and nothing else."""

    @property
    def radius(self) -> float:
        """In units of the input."""
        ...

    def norm(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """Length of each perturbation."""
        ...

    def dual(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """Largest inner product of each gradient with a perturbation of norm 1."""
        ...

    def steepest(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The perturbation of norm 1 along which a function rises most; 0 where its gradient is."""
        ...

    def project(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The point of the ball that is nearest in Euclidean distance."""
        ...

    def sample(self, like: Float[Tensor, "b ..."], generator: torch.Generator) -> Float[Tensor, "b ..."]:
        """Perturbations drawn uniformly from the ball."""
        ...


@dataclass(frozen=True, slots=True)
class LInf:
    """No coordinate moves further than `radius`."""

    radius: float = math.inf

    def __post_init__(self) -> None:
        _check_radius(self.radius)

    def norm(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return delta.flatten(1).abs().amax(1)

    def dual(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return gradient.flatten(1).abs().sum(1)

    def steepest(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return gradient.sign()

    def project(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return delta.clamp(-self.radius, self.radius)

    def sample(self, like: Float[Tensor, "b ..."], generator: torch.Generator) -> Float[Tensor, "b ..."]:
        return (2 * torch.rand(like.shape, generator=generator) - 1).to(like) * self.radius


@dataclass(frozen=True, slots=True)
class L2:
    """The Euclidean ball."""

    radius: float = math.inf

    def __post_init__(self) -> None:
        _check_radius(self.radius)

    def norm(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def dual(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return self.norm(gradient)

    def steepest(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return gradient / along(self.norm(gradient).clamp_min(_LEAST), gradient)

    def project(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return delta * along((self.radius / self.norm(delta).clamp_min(_LEAST)).clamp_max(1), delta)

    def sample(self, like: Float[Tensor, "b ..."], generator: torch.Generator) -> Float[Tensor, "b ..."]:
        directions = self.steepest(torch.randn(like.shape, generator=generator))
        lengths: Tensor = torch.rand(len(like), generator=generator) ** (len(like) / max(1, like.numel()))
        return (directions * along(lengths, directions)).to(like) * self.radius


@dataclass(frozen=True, slots=True)
class L1:
    """The ball in which the sum of all coordinates' moves is bounded: sparse perturbations.

    Attributes:
        radius: In units of the input.
        spread: Share of the coordinates that one step moves, those with the largest gradient, at least one.
            0, the exact direction of steepest ascent, moves one. Where neighbouring coordinates matter alike,
            a spread of 0.01 needs far fewer steps (Tramèr & Boneh 2019, arXiv 1904.13000: SLIDE).
    """

    radius: float = math.inf
    spread: float = 0.0

    def __post_init__(self) -> None:
        _check_radius(self.radius)
        if not 0 <= self.spread <= 1:
            raise ValueError(f"`spread` must be in [0, 1]; got {self.spread}. It is a share of coordinates.")

    def norm(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return delta.flatten(1).abs().sum(1)

    def dual(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return gradient.flatten(1).abs().amax(1)

    def steepest(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        flat = gradient.flatten(1)
        count = max(1, round(self.spread * flat.shape[1]))
        index = flat.abs().topk(count, dim=1).indices
        signs = flat.gather(1, index).sign()
        return torch.zeros_like(flat).scatter(1, index, signs / count).view_as(gradient)

    def project(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Soft thresholding at the level that brings the norm to the radius.

        Reference:
            Duchi et al. (2008), Efficient projections onto the l1-ball, figure 1.
        """
        flat = delta.flatten(1)
        sizes, _ = flat.abs().sort(dim=1, descending=True)
        excess = sizes.cumsum(1) - self.radius
        ranks = torch.arange(1, flat.shape[1] + 1, device=flat.device)
        last = (sizes * ranks > excess).sum(1, keepdim=True).clamp_min(1)
        level = (excess.gather(1, last - 1) / last).clamp_min(0)
        return (flat.sign() * (flat.abs() - level).clamp_min(0)).view_as(delta)

    def sample(self, like: Float[Tensor, "b ..."], generator: torch.Generator) -> Float[Tensor, "b ..."]:
        size = like[0].numel() if len(like) else 0
        gaps = torch.empty(len(like), size + 1).exponential_(generator=generator)
        signs = torch.randint(0, 2, (len(like), size), generator=generator) * 2 - 1
        flat = gaps[:, :size] / gaps.sum(1, keepdim=True) * signs
        return flat.view(like.shape).to(like) * self.radius


@dataclass(frozen=True, slots=True)
class Masked:
    """A ball in some of the coordinates; the others do not move and have no length (padding).

    Attributes:
        ball: Of the coordinates that move.
        mask: 1 on them, 0 elsewhere; broadcast to the perturbations, [b, ...].
    """

    ball: Ball
    mask: Tensor

    @property
    def radius(self) -> float:
        return self.ball.radius

    def norm(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return self.ball.norm(delta * self.mask)

    def dual(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return self.ball.dual(gradient * self.mask)

    def steepest(self, gradient: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return self.ball.steepest(gradient * self.mask)

    def project(self, delta: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return self.ball.project(delta * self.mask)

    def sample(self, like: Float[Tensor, "b ..."], generator: torch.Generator) -> Float[Tensor, "b ..."]:
        return self.ball.sample(like, generator) * self.mask


def along(values: Tensor, like: Tensor) -> Tensor:
    """One value per example, [b], shaped so that it multiplies whole examples, [b, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _check_radius(radius: float) -> None:
    if not radius > 0:
        raise ValueError(f"`radius` must be positive; got {radius}. A ball of radius 0 holds no attack.")
