"""Weights that bring every objective to the same size: of its gradient, or of its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Normalized:
    r"""Every gradient at unit length: w_i = 1/‖g_i‖ (NGDiff).

    With $g_F$ the gradient of the forget NLL (whose ascent is the objective), the direction is
    $d = g_R/\lVert g_R \rVert - g_F/\lVert g_F \rVert$, for which
    $\langle d, g_R \rangle = \lVert g_R \rVert (1 - \cos) \ge 0$ and
    $\langle d, g_F \rangle = -\lVert g_F \rVert (1 - \cos) \le 0$: a small step along $-d$ lowers the
    retain loss and raises the forget loss. An objective whose gradient is zero, or no longer than `tolerance`
    times the longest, gets weight zero: that of a divergence from the reference, at the reference, is nothing
    but rounding, which must not be brought to unit length.

    Args:
        tolerance: Working precision, at least 0 and below 1; 0 is the published rule. Gradients computed in
            fp32 are good to about 1e-7 of their terms.

    Example:
        >>> Normalized()(torch.tensor([[4., 1.], [1., 25.]]), torch.zeros(2))
        tensor([0.5000, 0.2000], dtype=torch.float64)

    Reference:
        arXiv 2410.22086, section 3.
    """

    tolerance: float = 1e-6

    needs_gramian = True

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"`tolerance` must be at least 0 and below 1; got {self.tolerance}.")

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        lengths = gramian.double().diagonal().clamp(min=0).sqrt()
        return _reciprocal(torch.where(lengths <= self.tolerance * lengths.max(), 0.0, lengths))


@dataclass(frozen=True)
class LossNormalized:
    r"""Every loss at unit size: w_i = 1/|L_i|.

    The direction is the gradient of $\sum_i \pm \log \lvert L_i \rvert$: an objective counts by its relative
    change, whatever its unit. Gradients play no part, so nothing keeps the direction from raising a loss.
    As $L_i \to 0$ the weight grows without bound (a fitted retain set takes over); exactly at zero,
    where the quotient is undefined, the weight is zero.

    Example:
        >>> LossNormalized()(torch.eye(2), torch.tensor([-4., 0.5]))
        tensor([0.2500, 2.0000], dtype=torch.float64)

    Reference:
        arXiv 2410.22086, the baseline of the same name.
    """

    needs_gramian = True  # not the Gramian itself, but losses that are only known after the step's last pass

    def __call__(self, gramian: Float[Tensor, "m m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        return _reciprocal(losses.double().abs().cpu())


def _reciprocal(sizes: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """1 / size, and zero where that is no finite number; what is not finite itself stays visible."""
    weights = 1 / sizes
    return torch.where(weights.isinf(), 0.0, weights)
