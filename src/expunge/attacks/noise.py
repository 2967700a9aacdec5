"""Shaking the weights: a model that is balanced on a narrow change falls back to what it knew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.restored import matrices
from expunge.attacks.sweep import Trial, check_shares, sweep, sweep_cost


@dataclass(frozen=True)
class Noise:
    r"""Ask after Gaussian noise, $W + s\,\sigma_W\,\mathcal{N}(0, 1)$; $\sigma_W$ is each matrix's deviation.

    Args:
        scales: s, each positive and below 1, at least one.
        draws: Tries per scale, at least 1; each is other noise, the same for all models.

    Reference:
        Tice et al. (2024), arXiv 2412.01784: noise brings hidden abilities of a model to light.
    """

    scales: tuple[float, ...] = (0.01, 0.03, 0.1)
    draws: int = 3
    name: ClassVar[str] = "noise"
    family: ClassVar[Family] = "weights"
    line: ClassVar[str] = "Gaussian noise on every matrix, relative to its spread (arXiv 2412.01784)."

    def __post_init__(self) -> None:
        check_shares("scales", self.scales)
        if self.draws < 1:
            raise ValueError(f"`draws` must be at least 1; got {self.draws}. Leave the attack out instead.")

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        return sweep_cost(probes, len(self.scales) * self.draws)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        trials = [
            Trial(
                scale,
                f"noise of {scale:g} deviations, draw {draw + 1}",
                partial(_apply, target.model, scale, setting.seed * self.draws + draw),
            )
            for scale in sorted(set(self.scales))
            for draw in range(self.draws)
        ]
        return sweep(target, probes, setting, trials, "deviations of noise")


def _apply(model: nn.Module, scale: float, seed: int) -> None:
    """Add noise to every matrix; it depends on the seed, the kind of device and the matrix's place alone."""
    generators: dict[torch.device, torch.Generator] = {}
    for matrix in matrices(model):
        device = matrix.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        noise = torch.randn(matrix.shape, generator=generators[device], device=device, dtype=matrix.dtype)
        matrix.add_(noise * (scale * matrix.std()))
