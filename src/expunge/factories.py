"""What is made from words of the user: fields are read as their types say, and refused in one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from expunge.errors import UsageError


def made(what: str, name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """What a class or a function makes of settings.

    Args:
        what: Its kind, for messages.
        name: As the user calls it.
        factory: Its parameters are the settings that it has.
        settings: Parameter -> value; strings are read as what the parameter holds, with commas between the
            members of a tuple.

    Raises:
        UsageError: A setting is unknown or of the wrong type, or the factory refuses it.
    """
    if lacking := missing_methods(factory):
        raise UsageError(f"{what} {name} must define {lacking}; it does not. Add what is missing.")
    known = inspect.signature(factory).parameters
    for key in settings:
        if key not in known:
            raise UsageError(
                f"--set {name}:{key} must name a setting of the {what}; it has "
                f"{', '.join(known) or 'none'}. {nearest(key, known)}".rstrip()
            )
    hints = get_type_hints(factory)
    values = {key: typed(f"{name}:{key}", value, hints.get(key, Any)) for key, value in settings.items()}
    try:
        return factory(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} {name} refused its settings: {error}") from None


def missing_methods(factory: Any) -> str:
    """Names of the abstract members that a class leaves open; "" where there is nothing to add."""
    return ", ".join(sorted(factory.__abstractmethods__)) if inspect.isabstract(factory) else ""


def typed(key: str, value: Any, hint: Any) -> Any:
    """A value as its type says; a string with commas is a tuple's members, a number may stand for a word.

    Raises:
        UsageError: It is not what the type takes.
    """
    if get_origin(hint) is tuple and isinstance(value, str | int | float):
        value = [word.strip() for word in str(value).split(",")]
    try:
        config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)  # latent_layers=8
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise UsageError(f"--set {key} must be {rule}; got {value!r}.") from None


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The hint "Did you mean …? ", or nothing where nothing is near."""
    near = difflib.get_close_matches(name, list(candidates), n=1)
    return f"Did you mean {near[0]}? " if near else ""
