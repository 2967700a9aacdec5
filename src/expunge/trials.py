"""What a comparison tries: methods, settings and seeds, each trial with a name of its own.

Knows words of the user; knows no model and no record.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.errors import UsageError
from expunge.settings import asked_code, find_recipe

_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")
_LONGEST = 120


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        method: As the user named it.
        varied: The point of the grid: setting -> value.
        fixed: Settings that do not vary: shared ones, and those given for this method alone.
        seed: Of every random choice in the training.
        evaluation_seed: Of the evaluation, the same for all trials, so that they are compared like for like.
        code: Hashes of the user's own code in the method (`settings.own_code`).
    """

    method: str
    varied: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    evaluation_seed: int = 0
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder: method, grid settings and seed in letters that every file system takes.

        Example:
            >>> Trial("npo", {"learning_rate": 1e-5}, seed=2).name
            'npo-learning_rate=1e-05-seed2'
        """
        words = "-".join([self.method, *(f"{key}={_short(value)}" for key, value in self.varied.items())])
        safe = _UNSAFE.sub("_", words).lstrip(".-")[:_LONGEST]
        if safe != words:  # two names may have become one
            safe += "-" + hashlib.sha256(words.encode()).hexdigest()[:8]
        return f"{safe}-seed{self.seed}"


def plan(
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    evaluation_seed: int | None = None,
) -> list[Trial]:
    """All trials, the first seed of every setting first, so that an early look covers every method.

    A setting or a grid entry may be meant for one method only: `npo:beta`.

    Args:
        methods: Names, without repetition.
        seeds: Likewise.
        settings: Of every trial.
        grid: Setting -> values; several settings are combined, every value with every other.
        evaluation_seed: Of every trial's evaluation; None is the first of `seeds`.

    Raises:
        UsageError: Nothing to try, a repetition, a setting for a method that is not compared, a setting that
            is both fixed and varied, or an unknown method.
    """
    _check("--methods", methods)
    _check("--seeds", seeds)
    for method in methods:
        find_recipe(method)
    for key, values in grid.items():
        _check(f"--grid {key}", values)
    _check_scopes((*settings, *grid), methods)
    trials = []
    asked = seeds[0] if evaluation_seed is None else evaluation_seed
    for seed, method in itertools.product(seeds, methods):
        fixed, axes = of_method(settings, method), of_method(grid, method)
        if both := fixed.keys() & axes.keys():
            raise UsageError(
                f"--grid and --set must not both name {sorted(both)[0]} (for {method}). Drop one."
            )
        for point in itertools.product(*axes.values()):
            varied = dict(zip(axes, point, strict=True))
            code = asked_code(method, {**fixed, **varied})
            trials.append(Trial(method, varied, fixed, seed, asked, code))
    return trials


def of_method(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Settings that hold for one method: the shared ones, over them those with its name in front.

    Example:
        >>> of_method({"max_steps": 9, "npo:beta": 0.5, "dpo:beta": 0.1}, "npo")
        {'max_steps': 9, 'beta': 0.5}
    """
    shared = {key: value for key, value in settings.items() if ":" not in key}
    own = {key.rpartition(":")[2]: value for key, value in settings.items() if _scope(key) == method}
    return shared | own


def _scope(key: str) -> str:
    return key.rpartition(":")[0]


def _check_scopes(keys: Sequence[str], methods: Sequence[str]) -> None:
    for key in keys:
        if (scope := _scope(key)) and scope not in methods:
            raise UsageError(
                f"--set and --grid must name a compared method before the colon; got {key!r}. "
                f"Compared are {', '.join(methods)}."
            )


def _check(what: str, values: Sequence[Any]) -> None:
    if not values:
        raise UsageError(f"{what} must name at least one value; got none. For example --methods ngdiff,npo.")
    repeated = [value for value, count in Counter(map(str, values)).items() if count > 1]
    if repeated:
        raise UsageError(f"{what} must not repeat a value; {repeated[0]} stands there twice. Drop one.")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
