"""The front and the hypervolume against closed forms and a count of unit squares."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.front import hypervolume, on_front

WHOLE = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12)


def floats(points):
    return [(float(x), float(y)) for x, y in points]


@pytest.mark.parametrize(
    ("points", "reference", "area"),
    [
        ([], (1.0, 1.0), 0.0),
        ([(0.0, 0.0)], (1.0, 1.0), 1.0),
        ([(0.25, 0.5)], (1.0, 1.0), 0.375),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], (4.0, 4.0), 6.0),
        ([(1.0, 3.0), (1.0, 3.0), (2.0, 3.5)], (4.0, 4.0), 3.0),
        ([(5.0, 0.0), (0.0, 5.0), (4.0, 0.0)], (4.0, 4.0), 0.0),
        ([(math.nan, 0.0), (-math.inf, 0.0), (3.0, 3.0)], (4.0, 4.0), 1.0),
        ([(0.1, -0.9), (0.4, -0.95)], (1.0, 0.0), 0.9 * 0.9 + 0.6 * 0.05),
    ],
)
def test_hypervolume_of_known_shapes(points, reference, area):
    assert hypervolume(points, reference) == pytest.approx(area, abs=1e-12)


@given(WHOLE)
def test_hypervolume_counts_unit_squares(points):
    squares = {
        (x, y) for a, b in points for x in range(a, 8) for y in range(b, 8)
    }  # lower left corners of what each point dominates
    assert hypervolume(floats(points), (8.0, 8.0)) == len(squares)


@given(WHOLE)
def test_the_front_is_what_nothing_dominates_and_carries_the_whole_area(points):
    front = on_front(floats(points))
    for (x, y), first in zip(points, front, strict=True):
        better = [(a, b) for a, b in points if a <= x and b <= y and (a, b) != (x, y)]
        assert first == (not better)
    best = [point for point, first in zip(floats(points), front, strict=True) if first]
    assert hypervolume(best, (8.0, 8.0)) == hypervolume(floats(points), (8.0, 8.0))


def test_what_is_not_finite_is_never_on_the_front():
    assert on_front([(math.nan, 0.0), (0.0, -math.inf), (5.0, 5.0)]) == [False, False, True]
