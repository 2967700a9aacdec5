"""The distribution over all tokens but the target."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor


def without_target(scores: Float[Tensor, "k v"], targets: Int[Tensor, " k"]) -> Float[Tensor, "k v"]:
    """The scores with minus infinity at every target; no gradient flows to those entries."""
    return scores.scatter(1, targets[:, None], -math.inf)
