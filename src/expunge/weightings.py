"""Weightings: the Gramian of the objectives' gradients -> one weight per objective.

The combined gradient is d = Σ w_i g_i. Everything here is arithmetic on an m×m matrix; nothing
knows a model. The Gramian weightings of TorchJD take part through `TorchJD`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torchjd.aggregation import Weighting as TorchJDWeighting


@runtime_checkable
class Weighting(Protocol):
    """One weight per objective, in float64."""

    @property
    def needs_gramian(self) -> bool:
        """Whether the weights depend on gradients; if not, one fused backward pass is enough."""
        ...

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Weights from inner products of gradients and the values of the objectives."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same weights at every step (GDiff: 1 on forget, α on retain).

    Args:
        weights: One finite number per objective.
    """

    weights: tuple[float, ...]

    needs_gramian = False

    def __post_init__(self) -> None:
        if not self.weights or not all(abs(w) < float("inf") for w in self.weights):
            raise ValueError(f"`weights` must be one finite number per objective; got {self.weights}.")

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        if len(self.weights) != len(losses):
            raise ValueError(
                f"`weights` must have one entry per objective ({len(losses)}); got {self.weights}."
            )
        return torch.tensor(self.weights, dtype=torch.float64)


@dataclass(frozen=True)
class Normalized:
    r"""Every gradient at unit length: $w_i = 1 / \lVert g_i \rVert = G_{ii}^{-1/2}$ (NGDiff).

    With $g_F$ the gradient of the forget NLL (whose ascent is the objective), the direction is
    $d = g_R/\lVert g_R \rVert - g_F/\lVert g_F \rVert$, for which
    $\langle d, g_R \rangle = \lVert g_R \rVert (1 - \cos) \ge 0$ and
    $\langle d, g_F \rangle = -\lVert g_F \rVert (1 - \cos) \le 0$: a small step along $-d$ lowers the
    retain loss and raises the forget loss. An objective whose gradient is zero gets weight zero.

    Example:
        >>> Normalized()(torch.tensor([[4., 1.], [1., 25.]]), torch.zeros(2))
        tensor([0.5000, 0.2000], dtype=torch.float64)

    Reference:
        arXiv 2410.22086, section 3.
    """

    needs_gramian = True

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        norms = gramian.double().diagonal().clamp(min=0).sqrt()
        return torch.where(norms > 0, 1 / norms, 0.0)


@dataclass(frozen=True)
class TorchJD:
    """A Gramian weighting of TorchJD, as it stands.

    Args:
        weighting: For example `torchjd.aggregation.UPGradWeighting()`.
    """

    weighting: TorchJDWeighting[Any]

    needs_gramian = True

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        return self.weighting(gramian.double()).double()
