"""Checks of an attack's budget, made when it is created."""

from __future__ import annotations

import math


def at_least(name: str, value: int, least: int = 1) -> None:
    """Refuse a count below `least`.

    Raises:
        ValueError: It is.
    """
    if not value >= least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}. Raise it, or leave it out.")


def within(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Refuse a number outside (low, high].

    Raises:
        ValueError: It is.
    """
    if not low < value <= high:
        upper = ")" if math.isinf(high) else "]"
        raise ValueError(
            f"`{name}` must be in ({low:g}, {high:g}{upper}; got {value}. Move it there, or leave it out."
        )
