"""Dropping the smallest weights: what was hidden by many small changes comes back when they are gone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.restored import matrices
from expunge.attacks.sweep import Trial, check_shares, sweep, sweep_cost


@dataclass(frozen=True)
class Prune:
    """Ask after the smallest weights of every matrix inside the blocks were set to zero.

    Args:
        shares: Of the weights, each in (0, 1), at least one.

    Reference:
        Han et al. (2015), arXiv 1506.02626 (magnitude pruning).
    """

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    name: ClassVar[str] = "prune"
    family: ClassVar[Family] = "weights"
    line: ClassVar[str] = "The smallest weights of every matrix set to zero (arXiv 1506.02626)."

    def __post_init__(self) -> None:
        check_shares("shares", self.shares)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        return sweep_cost(probes, len(self.shares))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        trials = [
            Trial(share, f"smallest {share:.0%} of weights pruned", partial(_apply, target.model, share))
            for share in sorted(set(self.shares))
        ]
        return sweep(target, probes, setting, trials, "share of weights pruned")


def _apply(model: nn.Module, share: float) -> None:
    for matrix in matrices(model):
        matrix.copy_(pruned(matrix, share))


def pruned(matrix: Float[Tensor, "out in"], share: float) -> Float[Tensor, "out in"]:
    """The matrix without its smallest entries; entries that tie with the largest dropped one go too.

    Args:
        matrix: Weights.
        share: Of the entries, rounded down to whole ones.

    Example:
        >>> pruned(torch.tensor([[3.0, -1.0], [0.5, -2.0]]), 0.5)
        tensor([[ 3.,  0.],
                [ 0., -2.]])
    """
    sizes = matrix.abs()
    count = int(share * sizes.numel())
    if not count:
        return matrix
    limit = sizes.flatten().kthvalue(count).values
    return torch.where(sizes > limit, matrix, 0.0)
