"""The Gramian weightings of TorchJD, as they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torchjd.aggregation import Weighting as TorchJDWeighting


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
