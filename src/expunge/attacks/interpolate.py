"""Walking back towards the original: how little of the way brings the records back."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.restored import has_adapter, plain_parameters, whole
from expunge.attacks.sweep import Trial, check_shares, sweep, sweep_cost
from expunge.errors import UsageError


@dataclass(frozen=True)
class Interpolate:
    r"""Ask at $\theta + \alpha (\theta_{original} - \theta)$.

    Not an attack that an outsider can make: whoever has the original needs no recovery. It measures how far
    unlearning went. At α = 1 every model is the original, so recovery means something only beside the control
    at the same α: a control that never knew comes back only where half the way *is* half the knowledge.

    Args:
        alphas: α, each in (0, 1), at least one.

    Reference:
        Wortsman et al. (2022), arXiv 2109.01903 (interpolation between fine-tuned weights).
    """

    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    name: ClassVar[str] = "interpolate"
    family: ClassVar[Family] = "weights"
    borrows: ClassVar[bool] = True
    line: ClassVar[str] = "Part of the way back to the original's weights (arXiv 2109.01903)."

    def __post_init__(self) -> None:
        check_shares("alphas", self.alphas)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None if setting.original else "It needs the original model: give --original."

    def cost(self, probes: Probes) -> Cost:
        return sweep_cost(probes, len(self.alphas))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        if setting.original is None:
            raise ValueError("`setting.original` must be the original model for this attack; got None.")
        original = setting.original.model
        same = original is target.model
        trials = [
            Trial(
                alpha,
                f"{alpha:.0%} of the way to the original's weights",
                (lambda: None) if same else partial(_apply, target.model, original, alpha),
            )
            for alpha in sorted(set(self.alphas))
        ]
        with whole(original) if has_adapter(original) and not same else nullcontext():
            return sweep(target, probes, setting, trials, "share of the way to the original")


def _apply(model: nn.Module, original: nn.Module, alpha: float) -> None:
    mine, theirs = plain_parameters(model), plain_parameters(original)
    differing = [n for n in {*mine} | {*theirs} if n not in mine or n not in theirs
                 or mine[n].shape != theirs[n].shape]  # fmt: skip
    if differing:
        raise UsageError(
            "Interpolation needs an original of the same architecture; the models differ in "
            f"{sorted(differing)[0]}. Leave the attack out, or give the model that was unlearned."
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.lerp_(theirs[name].to(parameter), alpha)
