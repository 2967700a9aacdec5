"""Weightings: the Gramian of the objectives' gradients -> one weight per objective.

The combined gradient is d = Σ w_i g_i. Everything here is arithmetic on an m×m matrix; nothing
knows a model. The Gramian weightings of TorchJD take part through `TorchJD`.
"""

from expunge.weightings.constant import Constant
from expunge.weightings.contract import Stateful, Weighting
from expunge.weightings.dual_space import DualSpaceMGDA
from expunge.weightings.min_norm import MinNorm
from expunge.weightings.normalized import LossNormalized, Normalized
from expunge.weightings.torchjd import TorchJD

__all__ = [
    "Constant",
    "DualSpaceMGDA",
    "LossNormalized",
    "MinNorm",
    "Normalized",
    "Stateful",
    "TorchJD",
    "Weighting",
]
