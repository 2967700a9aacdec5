"""Filters that can be named: `expunge audit --filters refuse-answers,FILE.py:NAME`.

Filters that protect texts protect the forget records', unless a setting says otherwise.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from expunge.defences.filters import Filter, Paraphrase, RefuseAnswers, RefusePrompts, Smoothing
from expunge.errors import UsageError
from expunge.extension import load_object, names_object
from expunge.factories import made
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
        configuration: Its fields as plain values; texts that it protects are counted, not quoted.
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
        forget: What is protected by those that protect texts.

    Raises:
        UsageError: There is no such filter, it stands there twice, or it refuses its settings.
    """
    names = [_called(one) for one in given]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--filters must not repeat a filter; {repeated[0]} stands there twice. Drop one.")
    own: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, _, field = key.rpartition(":")
        own.setdefault(name, {})[field] = value
    found = []
    for name, one in zip(names, given, strict=True):
        known = own.get(name, {})
        ready = _made(one, known, forget) if isinstance(one, str) else _as_it_is(name, one, known)
        found.append(named(ready, name))
    return tuple(found)


def named(filter_: Filter, name: str = "") -> Named:
    """A filter under the name of its class, or under another."""
    return Named(name or _called(filter_), filter_, _configuration(filter_))


def of_filters(settings: Mapping[str, Any], given: Sequence[str | Filter]) -> dict[str, Any]:
    """Those settings, NAME:FIELD -> value, whose name is that of a filter."""
    names = {_called(one) for one in given}
    return {key: value for key, value in settings.items() if key.rpartition(":")[0] in names}


def lines() -> dict[str, str]:
    """Every built-in filter with its first line."""
    return {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in FILTERS.items()}


def _called(one: str | Filter) -> str:
    if isinstance(one, str):
        return one
    known = {kind: name for name, kind in FILTERS.items()}
    return known.get(type(one)) or str(getattr(one, "__name__", type(one).__name__))


def _made(name: str, settings: Mapping[str, Any], forget: Sequence[Record]) -> Filter:
    if name in FILTERS:
        kind = FILTERS[name]
        return _of_class(name, kind, {**_protected(kind, forget), **settings})
    if not names_object(name):
        from expunge.settings import nearest

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
    """The texts of the forget records that a filter is there to protect."""
    if "protected" not in inspect.signature(kind).parameters:
        return {}
    texts = (record.response if kind is RefuseAnswers else record.prompt for record in forget)
    return {"protected": tuple(dict.fromkeys(text for text in texts if text.strip()))}


def _configuration(found: Filter) -> dict[str, Any]:
    if not dataclasses.is_dataclass(found) or isinstance(found, type):
        return {}
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return {name: _plain(name, value) for name, value in fields.items()}


def _plain(name: str, value: Any) -> Any:
    if name == "protected" and isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} text{'s' if len(value) != 1 else ''}"
    return value if isinstance(value, int | float | str | None) else repr(value)
