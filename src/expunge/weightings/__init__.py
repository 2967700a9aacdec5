"""Weightings: the Gramian of the objectives' gradients -> one weight per objective.

The combined gradient is d = Σ w_i g_i. Everything here is arithmetic on an m×m matrix, in float64 on the
CPU; nothing knows a model. `WEIGHTINGS` maps names to constructors; one of your own only has to satisfy
`Weighting` (and `Stateful`, if it remembers).
"""

from collections.abc import Callable
from dataclasses import replace

from expunge.weightings.bi_level import BiLevel
from expunge.weightings.constant import Constant
from expunge.weightings.contract import Stateful, Weighting
from expunge.weightings.dual_ascent import DualAscent
from expunge.weightings.dual_space import DualSpaceMGDA
from expunge.weightings.min_norm import MinNorm
from expunge.weightings.normalized import LossNormalized, Normalized
from expunge.weightings.torchjd import TORCHJD, NashMTL, TorchJD

WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "constant": Constant,
    "normalized": Normalized,
    "loss-normalized": LossNormalized,
    "dual-space-mgda": DualSpaceMGDA,
    "bi-level": BiLevel,
    "dual-ascent": DualAscent,
    "min-norm": MinNorm,
    **TORCHJD,
}


def weighting_for(name: str, count: int, run_seed: int = 0) -> Weighting:
    """A registered weighting for a number of objectives.

    `constant` counts them alike, `bi-level` takes the first one as the lower; all others come as they are.
    Those that draw lots do so by the seed of the run.

    Raises:
        KeyError: No weighting has that name.
        TypeError: It has arguments without a usual value: `dual-ascent` bounds.
        UsageError: A solver that it needs is not installed.
    """
    if name == "constant":
        return Constant((1.0,) * count)
    if name == "bi-level":
        return BiLevel(count=max(count, 2))
    made = WEIGHTINGS[name]()
    return replace(made, run_seed=run_seed) if isinstance(made, TorchJD) else made


__all__ = [
    "TORCHJD",
    "WEIGHTINGS",
    "BiLevel",
    "Constant",
    "DualAscent",
    "DualSpaceMGDA",
    "LossNormalized",
    "MinNorm",
    "NashMTL",
    "Normalized",
    "Stateful",
    "TorchJD",
    "Weighting",
    "weighting_for",
]
