"""What the parts of a user's own method promise, tried once before anything is trained.

A weighting is asked for weights, a step size for a learning rate, on numbers made up for it: nothing of a
model or of records. Parts of the package promise by their tests and are not tried.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.derived import is_forget
from expunge.extension import file_of, load_object, names_object
from expunge.methods import Method
from expunge.own_code import code_hashes, is_ours, raised
from expunge.step_sizes import Line

_MEMORY = ("reset", "observe", "state", "restore")


def check_parts(method: Method) -> None:
    """Refuse parts that do not keep what their interfaces promise.

    A part is tried as a copy, where it can be copied, and a run begins with `reset()`; random numbers go on
    as if nothing had been drawn.

    Raises:
        ValueError: An objective without a data set; a weighting that lacks a member, remembers by half, or
            gives something else than one weight per objective; a step size that gives no `Proposal`.
    """
    for objective in method.objectives:
        if not is_ours(type(objective)) and not isinstance(getattr(objective, "source", None), str):
            raise ValueError(
                f"objective {objective.name!r} ({_named(objective)}) must have a `source`, the data set that "
                'it reads; it has none. Add a field: source: str = "forget".'
            )
    for weighting in (method.weighting, *(method.merge.further if method.merge else ())):
        if not is_ours(type(weighting)):
            _check_weighting(weighting, method)
    if method.step_size is not None and not is_ours(type(method.step_size)):
        _check_step_size(method.step_size)


def code_of(method: Method, named: Iterable[str] = ()) -> dict[str, str]:
    """Hashes of the user's own code in a method: of objectives, weightings, step size, schedule, selectors.

    Args:
        method: As it is run.
        named: `FILE.py:NAME` of recipes and parts that it came from.
    """
    chosen = (o.needs.selector for o in method.objectives if o.needs.selector is not None)
    names = [name for name in (*named, *chosen) if names_object(name)]
    files = [file for name in names if (file := file_of(name)) is not None]
    return code_hashes([method, *(load_object(name, "a part of the method") for name in names)], files)


def _check_weighting(weighting: Any, method: Method) -> None:
    rule = f"weighting {_named(weighting)} of method {method.name!r}"
    if not hasattr(weighting, "needs_gramian"):
        raise ValueError(
            f"{rule} must say in `needs_gramian` whether its weights depend on gradients or losses; it has "
            "none. Add needs_gramian = True, or False; one of TorchJD's is given as TorchJD(...)."
        )
    if not callable(weighting):
        raise ValueError(f"{rule} must be callable; it has no `__call__(gramian, losses)`. Add it.")
    missing = [name for name in _MEMORY if not callable(getattr(weighting, name, None))]
    remembers = any(hasattr(weighting, name) for name in _MEMORY)
    if remembers and missing:
        raise ValueError(
            f"{rule} must have all of {', '.join(_MEMORY)} to remember, or none; it lacks "
            f"{', '.join(missing)}. Add {'it' if len(missing) == 1 else 'them'}, or rename what it has."
        )
    counts = [len(method.objectives)]
    if method.budget and method.budget.repair and not method.merge:
        counts.append(sum(not is_forget(objective.source) for objective in method.objectives))
    with _tried(weighting, rule) as tried:
        if remembers:
            tried.reset()
        for count in counts if weighting.needs_gramian else counts[:1]:
            _check_weights(tried(*_gradients(count, seen=weighting.needs_gramian)), count, rule)
        if remembers:
            tried.observe(_gradients(counts[0], seen=True)[1])
            _check_state(tried.state(), rule)
            tried.restore(tried.state())
            tried.reset()


def _gradients(count: int, *, seen: bool) -> tuple[Tensor, Tensor]:
    """A positive definite Gramian, and losses; zeros for a weighting that may not look at them."""
    losses = torch.linspace(1.0, 2.0, count, dtype=torch.float64)
    gramian = torch.eye(count, dtype=torch.float64) + 0.1
    return (gramian, losses) if seen else (torch.zeros(count, count), torch.zeros(count))


def _check_weights(weights: Any, count: int, rule: str) -> None:
    if not isinstance(weights, Tensor) or weights.shape != (count,):
        raise _BrokenError(
            f"{rule} must give one weight per objective, a tensor of shape [{count}] for {count} of them; "
            f"it gave {_shown(weights)}. Return as many weights as there are losses."
        )


def _check_state(state: Any, rule: str) -> None:
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Real) for name, value in state.items()
    ):
        raise _BrokenError(
            f"{rule} must keep its state as numbers by name, for a checkpoint; `state` gave {state!r:.100}. "
            "Return a dict of floats."
        )


def _check_step_size(rule: Any) -> None:
    what = f"step size {_named(rule)}"
    every, rows = getattr(rule, "every", None), getattr(rule, "rows", None)
    if not isinstance(every, int) or every < 1:
        raise ValueError(
            f"{what} must say in `every` after how many steps it measures, at least 1; it has "
            f"{_member(rule, 'every')}. Add every = 10."
        )
    if not hasattr(rule, "rows") or not (rows is None or (isinstance(rows, int) and rows >= 1)):
        raise ValueError(
            f"{what} must say in `rows` how many retain rows it measures, or None for the step's own; it has "
            f"{_member(rule, 'rows')}. Add rows = None."
        )
    with _tried(rule, what) as tried:
        found = tried(1e-4, _line(rows))
        pair = isinstance(found, tuple) and len(found) == 2
        if not (pair and isinstance(found[0], Real) and isinstance(found[1], str)):
            raise _BrokenError(
                f"{what} must give a Proposal, the learning rate and the reason for it; it gave "
                f'{_shown(found)}. Return Proposal(learning_rate, "why").'
            )


def _line(rows: int | None) -> Line:
    """A parabola with its minimum ahead, a little different for every row."""
    zero = torch.linspace(1.9, 2.1, rows or 4, dtype=torch.float64)
    start = zero - 0.01 if rows else None
    return Line(zero * 1.1, zero, zero * 0.95, torch.full_like(zero, 8.0), start)


class _BrokenError(ValueError):
    """A promise that was not kept: the message says all."""


@contextmanager
def _tried(part: Any, rule: str) -> Iterator[Any]:
    """A copy of a part to try; what it raises is a message, and random numbers go on as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield _copied(part)
    except _BrokenError:
        raise
    except Exception as error:
        raise ValueError(
            f"{rule} must answer when it is tried before training; it raises {raised(error)}. Mend it."
        ) from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _copied(part: Any) -> Any:
    try:
        return copy.deepcopy(part)
    except Exception:  # it holds what cannot be copied, such as a lock or an open file
        return part


def _named(part: object) -> str:
    return type(part).__qualname__


def _member(part: object, name: str) -> str:
    return f"{name} = {getattr(part, name)!r:.100}" if hasattr(part, name) else "none"


def _shown(value: Any) -> str:
    """What was given instead: shapes of tensors, the beginning of anything else."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r:.100}"
