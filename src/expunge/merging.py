r"""Arithmetic on weight changes: a model made from what one or several trainings changed.

$\theta = \theta_0 + c \cdot \mathrm{combine}(\theta_1 - \theta_0, \dots, \theta_k - \theta_0)$. Knows
tensors; which training is under way and when it ends is `phases`' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from expunge.weightings import Stateful, Weighting


@runtime_checkable
class Combination(Protocol):
    """One change from the changes that k trainings made to one parameter."""

    def __call__(self, changes: Float[Tensor, "k ..."]) -> Float[Tensor, "..."]:
        """The combined change, of the parameter's shape."""
        ...


@dataclass(frozen=True)
class Sum:
    r"""Task arithmetic: $\tau = \sum_i \tau_i$.

    Example:
        >>> Sum()(torch.tensor([[1.0, -2.0], [3.0, 1.0]]))
        tensor([ 4., -1.])

    Reference:
        Ilharco et al. (2022), arXiv 2212.04089, section 2.
    """

    def __call__(self, changes: Float[Tensor, "k ..."]) -> Float[Tensor, "..."]:
        return changes.sum(0)


@dataclass(frozen=True)
class TIES:
    r"""Trim, elect sign, merge: the mean of those changes that agree with the majority's sign.

    Per parameter tensor: of each change the entries of largest magnitude stay ($\hat\tau_i$), entry by entry
    the sign is elected by total magnitude, $\gamma = \mathrm{sgn}(\sum_i \hat\tau_i)$, and the mean goes over
    the $i$ with $\mathrm{sgn}(\hat\tau_i) = \gamma$. Where no sign wins, and where nothing stayed, the change
    is zero. Entries that tie with the smallest one kept are kept too.

    The paper trims each model as one long vector; here, as in the merging of adapters, every tensor is
    trimmed by itself.

    Args:
        density: Share of entries that stay, in (0, 1]; one entry at least.

    Example:
        >>> TIES(density=0.5)(torch.tensor([[4.0, -2.0, 1.0, 0.0], [2.0, 1.0, -3.0, 0.0]]))
        tensor([ 3., -2., -3.,  0.])

    Reference:
        Yadav et al. (2023), arXiv 2306.01708, algorithm 1.
    """

    density: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"`density` must be in (0, 1] (share of entries kept); got {self.density}.")

    def __call__(self, changes: Float[Tensor, "k ..."]) -> Float[Tensor, "..."]:
        kept = torch.stack([_trim(change, self.density) for change in changes])
        elected = kept.sum(0).sign()
        agreeing = (kept.sign() == elected) & (elected != 0)
        return (kept * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


@dataclass(frozen=True)
class Merge:
    """How the model of a method is made from the start of the run and what training changed.

    A run trains once under the method's own weighting and once more, from the same start with a fresh
    optimizer and schedule, under each further one. Then the coefficients are tried in order: the first at
    which the retain budget holds is taken. Without a budget there must be exactly one.

    Args:
        combine: One change from one per training.
        coefficients: Of the combined change, each finite and not zero; negative ones undo it.
        further: Weightings of further trainings; none may remember anything from step to step.
    """

    combine: Combination
    coefficients: tuple[float, ...]
    further: tuple[Weighting, ...] = ()

    def __post_init__(self) -> None:
        if not self.coefficients or not all(math.isfinite(c) and c for c in self.coefficients):
            raise ValueError(
                f"`coefficients` must be at least one finite number other than 0; got {self.coefficients}."
            )
        if remembering := [weighting for weighting in self.further if isinstance(weighting, Stateful)]:
            raise ValueError(
                f"`further` must be weightings without memory; {type(remembering[0]).__name__} has one. "
                "Choose Constant or another that depends on the present step alone."
            )


def _trim(change: Tensor, density: float) -> Tensor:
    """A change with all but its largest entries set to zero."""
    sizes = change.abs().flatten()
    kept = max(1, int(density * len(sizes)))
    smallest = sizes.kthvalue(len(sizes) - kept + 1).values
    return torch.where(change.abs() >= smallest, change, 0.0)
