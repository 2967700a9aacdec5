"""Whether two sets of settings are alike, and the first in which they are not; knows none by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

DEFAULT = "as by default"
"""Said of a setting that one of the sets does not name."""


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first setting that differs, and both its values as text; None where all are alike.

    Settings may have been kept as JSON since: a tuple is what it is as a list.

    Example:
        >>> first_difference({"steps": 3, "budget": {"every": 5}}, {"steps": 3, "budget": {"every": 9}})
        ('budget.every', '5', '9')
    """
    one, two = kept(before), kept(now)
    for key in one | two:
        values = one.get(key, DEFAULT), two.get(key, DEFAULT)
        first, second = map(told, values)
        if first == second:
            continue
        if isinstance(values[0], dict) and isinstance(values[1], dict):
            inner, *said = first_difference(values[0], values[1]) or ("", first, second)
            return ".".join(filter(None, (key, inner))), said[0], said[1]
        return key, first, second
    return None


def told(value: Any) -> str:
    """A value as text. Numbers that a machine's last digits move are the same to six.

    Such as a sharpness relative to a norm.
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON; what that does not know is its text."""
    return dict(json.loads(to_json(settings, inf_nan_mode="strings", fallback=str)))
