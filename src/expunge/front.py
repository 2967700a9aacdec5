"""The front of a set of points in two costs, and how much of the plane they dominate. Knows only numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""Two costs: less of either is better."""


def on_front(points: Sequence[Point]) -> list[bool]:
    """Which points no other point dominates; equal points do not dominate each other.

    A point dominates another one that is worse in one cost and not better in the other. A point with a
    coordinate that is not finite is never on the front.

    Example:
        >>> on_front([(0.1, 0.9), (0.5, 0.5), (0.5, 0.9), (0.9, 0.1)])
        [True, True, False, True]
    """
    finite = [point for point in points if all(map(math.isfinite, point))]
    return [point in finite and not any(_dominates(other, point) for other in finite) for point in points]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    r"""Area of the plane that is dominated by some point and bounded by the reference: exact.

    $\operatorname{vol}\bigcup_i [x_i, r_x] \times [y_i, r_y]$ by a sweep along the first cost. Points that
    are not better than the reference in both costs, or not finite, add nothing.

    Args:
        points: In any order; dominated ones change nothing.
        reference: The worst corner; areas are comparable only under the same one.

    Example:
        >>> hypervolume([(1.0, 3.0), (2.0, 1.0), (3.0, 3.0)], reference=(4.0, 4.0))
        7.0

    Reference:
        Zitzler & Thiele (1998), PPSN V: the size of the space covered.
    """
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(point for point in points if all(map(math.isfinite, point))):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area


def _dominates(one: Point, other: Point) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
