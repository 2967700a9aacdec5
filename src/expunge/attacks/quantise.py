r"""Rounding the weights: a change of the weights that is smaller than a rounding step is undone by rounding.

Knows matrices; the change itself is `rounded`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.restored import matrices
from expunge.attacks.sweep import Trial, sweep, sweep_cost
from expunge.errors import UsageError

_HALF: Final = 16

Half = Literal["bf16", "fp16"]
_HALVES: Final[dict[Half, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Quantise:
    """Ask after rounding to nearest: what is deployed is rarely the fp32 model that was unlearned.

    16 bits round every weight to bfloat16, or to float16 if that is what will be deployed. 8 bits round each
    row (output channel) of the blocks' matrices to 255 levels up to its largest magnitude, fewer bits each
    group of a row; embeddings and the output layer keep their precision, as with common kernels. Values are
    rounded, the arithmetic stays that of the audit.

    Args:
        bits: Bits per weight, each 2 to 8 or 16, at least one.
        group: Weights that share a scale below 8 bits, at least 1.
        half: What 16 bits are, bf16 or fp16. A weight beyond 65504, the largest number of fp16, is an error
            (UsageError): rounded to infinity it would break the model, and nothing would seem to come back.

    Reference:
        Zhang et al. (2024), arXiv 2410.16454: forgotten knowledge returns under 4 bits.
    """

    bits: tuple[int, ...] = (16, 8, 4)
    group: int = 128
    half: Half = "bf16"
    name: ClassVar[str] = "quantise"
    family: ClassVar[Family] = "weights"
    line: ClassVar[str] = "Weights rounded to bf16 (or fp16), int8 and int4 (arXiv 2410.16454)."

    def __post_init__(self) -> None:
        wrong = [bits for bits in self.bits if bits != _HALF and not 2 <= bits <= 8]
        if wrong or not self.bits:
            raise ValueError(
                "`bits` must be at least one number from 2 to 8, or 16; "
                f"got {wrong[0] if wrong else 'none'}. Give the bits per weight that will be deployed."
            )
        if self.group < 1:
            raise ValueError(f"`group` must be at least 1; got {self.group}. Give the weights per scale.")

        if self.half not in get_args(Half):
            raise ValueError(f"`half` must be one of {', '.join(get_args(Half))}; got {self.half!r}.")

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        return sweep_cost(probes, len(self.bits))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        trials = [
            Trial(float(bits), self._words(bits), partial(self._apply, target.model, bits))
            for bits in sorted(set(self.bits), reverse=True)
        ]
        return sweep(target, probes, setting, trials, "bits per weight")

    def _words(self, bits: int) -> str:
        return f"{bits}-bit weights ({self.half})" if bits == _HALF else f"{bits}-bit weights"

    def _apply(self, model: nn.Module, bits: int) -> None:
        if bits == _HALF:
            for parameter in (p.detach() for p in model.parameters() if p.is_floating_point()):
                parameter.copy_(_halved(parameter, self.half))
            return
        for matrix in matrices(model):
            matrix.copy_(rounded(matrix, bits, matrix.shape[1] if bits == 8 else self.group))


def _halved(weights: Tensor, half: Half) -> Tensor:
    found = weights.to(_HALVES[half])
    if not torch.equal(found.isfinite(), weights.isfinite()):
        raise UsageError(
            f"Weights must be within the range of {half}, up to {torch.finfo(_HALVES[half]).max:g}; one is "
            f"{float(weights.abs().max()):g}. Such a model cannot be deployed so: set quantise:half=bf16."
        )
    return found


def rounded(matrix: Float[Tensor, "out in"], bits: int, group: int) -> Float[Tensor, "out in"]:
    r"""Round to nearest on a symmetric grid: $s\,\mathrm{round}(w / s)$ with $s = \max|w| / (2^{b-1} - 1)$.

    Args:
        matrix: Weights.
        bits: b, at least 2.
        group: Neighbours in a row that share a scale s; the last group may be shorter.

    Example:
        >>> rounded(torch.tensor([[3.0, 1.4, -0.4, 0.6]]), bits=3, group=2)
        tensor([[ 3.0000,  1.0000, -0.4000,  0.6000]])
    """
    return torch.cat([_on_grid(part, 2 ** (bits - 1) - 1) for part in matrix.split(group, dim=1)], dim=1)


def _on_grid(part: Tensor, levels: int) -> Tensor:
    scale = part.abs().amax(1, keepdim=True) / levels
    scale = torch.where(scale > 0, scale, 1.0)
    return (part / scale).round() * scale
