"""Rules that parameters of objectives share, each with its one message."""

from __future__ import annotations

import math


def positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above zero."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be positive and finite; got {value}.")


def non_negative(name: str, value: float) -> None:
    """Refuse what is not a finite number from zero on."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be non-negative and finite; got {value}.")
