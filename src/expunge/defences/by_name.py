"""Filters that can be named: `expunge audit --filters refuse-answers,FILE.py:NAME`.

Of ours, those that protect texts protect the forget records', unless a setting says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from expunge.defences.filters import Filter, Paraphrase, RefuseAnswers, RefusePrompts, Smoothing
from expunge.errors import UsageError
from expunge.extension import load_object, names_object
from expunge.factories import made, nearest
from expunge.records import Record

FILTERS: Final[Mapping[str, type]] = {
    "refuse-prompts": RefusePrompts,
    "refuse-answers": RefuseAnswers,
    "smoothing": Smoothing,
    "paraphrase": Paraphrase,
}
"""Name -> class of a filter."""


@dataclass(frozen=True)
class Named:
    """A filter, and what a record calls it.

    Attributes:
        name: The built-in name, FILE.py:NAME, or the name of its class or function.
        filter: It.
        configuration: Its fields (of a class without fields, its settings) as plain values; collections are
            counted, not quoted.
    """

    name: str
    filter: Filter
    configuration: Mapping[str, Any]


def make_filters(
    given: Sequence[str | Filter], settings: Mapping[str, Any], forget: Sequence[Record]
) -> tuple[Named, ...]:
    """Filters by name, from the user's own file (whose code runs), or as they are.

    Args:
        given: Names of `FILTERS`, FILE.py:NAME or MODULE:NAME of a filter or of a class of filters, and
            filters; outermost first.
        settings: NAME:FIELD -> value.
        forget: What is protected by those of ours that protect texts.

    Raises:
        UsageError: There is no such filter, it stands there twice, or it refuses its settings.
    """
    _check_list(given)
    names = [one for one in given if isinstance(one, str)]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--filters must not repeat a filter; {repeated[0]} stands there twice. Drop one.")
    own: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, _, field = key.rpartition(":")
        own.setdefault(name, {})[field] = value
    return tuple(_named(one, own.get(_called(one), {}), forget) for one in given)


def named(filter_: Filter, name: str = "", settings: Mapping[str, Any] | None = None) -> Named:
    """A filter under the name of its class, or under another."""
    return Named(name or _called(filter_), filter_, _configuration(filter_, settings or {}))


def of_filters(settings: Mapping[str, Any], given: Sequence[str | Filter]) -> dict[str, Any]:
    """Those settings, NAME:FIELD -> value, whose name is that of a filter.

    Raises:
        UsageError: There is no list of filters.
    """
    _check_list(given)
    names = {_called(one) for one in given}
    return {key: value for key, value in settings.items() if key.rpartition(":")[0] in names}


def lines() -> dict[str, str]:
    """Every built-in filter with its first line."""
    return {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in FILTERS.items()}


def _named(one: str | Filter, settings: Mapping[str, Any], forget: Sequence[Record]) -> Named:
    name = _called(one)
    if isinstance(one, str):
        return named(_made(one, settings, forget), name, settings)
    if isinstance(one, type):
        return named(_of_class(name, one, {**_protected(one, forget), **settings}), name, settings)
    return named(_as_it_is(name, one, settings), name)


def _check_list(given: object) -> None:
    if isinstance(given, str) or callable(given):
        raise UsageError(f"`filters` must be a list of filters and names; got {given!r}. Put it in brackets.")


def _called(one: str | Filter) -> str:
    if isinstance(one, str):
        return one
    known = {kind: name for name, kind in FILTERS.items()}
    kind = one if isinstance(one, type) else type(one)
    return known.get(kind) or str(getattr(one, "__name__", kind.__name__))


def _made(name: str, settings: Mapping[str, Any], forget: Sequence[Record]) -> Filter:
    if name in FILTERS:
        kind = FILTERS[name]
        return _of_class(name, kind, {**_protected(kind, forget), **settings})
    if not names_object(name):
        raise UsageError(
            f"--filters must name filters, with commas between; {name!r} is none. {nearest(name, FILTERS)}"
            f"There are {', '.join(FILTERS)}; name your own as FILE.py:NAME."
        )
    found = load_object(name, "--filters", FILTERS)
    return _of_class(name, found, settings) if isinstance(found, type) else _as_it_is(name, found, settings)


def _of_class(name: str, kind: type, settings: Mapping[str, Any]) -> Filter:
    try:
        found: Any = made("filter", name, kind, settings)
    except ImportError as error:
        raise UsageError(f"filter {name} needs a library: {error}. Install it.") from error
    return _as_it_is(name, found, {})


def _as_it_is(name: str, found: Any, settings: Mapping[str, Any]) -> Filter:
    if settings:
        raise UsageError(f"filter {name} is an object and takes no settings; got {', '.join(settings)}.")
    if not isinstance(found, Filter):
        raise UsageError(
            f"filter {name} must be callable as (prompts, ask) -> answers "
            f"(expunge.defences.filters.Filter); {type(found).__name__} is not."
        )
    return found


def _protected(kind: type, forget: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The texts of the forget records that a filter of ours is there to protect."""
    if kind not in (RefusePrompts, RefuseAnswers):
        return {}
    texts = (record.response if kind is RefuseAnswers else record.prompt for record in forget)
    return {"protected": tuple(dict.fromkeys(text for text in texts if text.strip()))}


def _configuration(found: Filter, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(found) or isinstance(found, type):
        return {name: _plain(value) for name, value in settings.items()}
    return {field.name: _plain(getattr(found, field.name)) for field in dataclasses.fields(found)}


def _plain(value: Any) -> Any:
    """A value without what it holds: that may be what was to be forgotten."""
    if isinstance(value, Collection) and not isinstance(value, str):
        kind = "text" if all(isinstance(one, str) for one in value) else "value"
        return f"{len(value)} {kind}{'s' if len(value) != 1 else ''}"
    if isinstance(value, int | float | str | None):
        return value
    return str(getattr(value, "__qualname__", type(value).__qualname__))
