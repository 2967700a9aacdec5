"""Objects from a user's own file: `path/to/file.py:name` or `package.module:name`.

This runs the code of that file, as `python file.py` would: it may import what stands beside it; a module is
looked for in the current folder too. That folder is the first place to look while the code is imported, and
the last from then on: the user's functions may import later, and nobody else's imports are taken from it. As
in any process, modules of one name are one module: the one that was imported first.

Names come from the command line, from a settings file or from Python; never from data.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from expunge.errors import UsageError
from expunge.own_code import note_run, raised

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def names_object(text: str) -> bool:
    """Whether a name points into a file or a module."""
    return ":" in text


def load_object(text: str, what: str, known: Iterable[str] = ()) -> Any:
    """The object that `file.py:name` or `module:name` names.

    Args:
        text: The name.
        what: What it should be, for messages.
        known: Built-in names, to suggest one.

    Raises:
        UsageError: There is no such file, module or object, or its code fails.
    """
    place, found, name = text.rpartition(":")
    if not found or not place or not name:
        near = difflib.get_close_matches(text, list(known), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"{what} must be one of {', '.join(known)}, or FILE.py:NAME or MODULE:NAME of your own; "
            f"got {text!r}. {hint}".rstrip()
        )
    module = _run_file(Path(place).expanduser(), what) if place.endswith(".py") else _import(place, what)
    if not hasattr(module, name):
        names = [key for key in vars(module) if not key.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(names[:8]) or 'nothing'}."
        raise UsageError(f"{what} {text!r} must name something in {place}; {name!r} is not there. {hint}")
    return getattr(module, name)


def file_of(text: str) -> Path | None:
    """The file of the code that a name points into, where there is one."""
    place = text.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    return Path(file).expanduser().resolve() if file and Path(file).expanduser().is_file() else None


def described(value: object) -> str:
    """The `repr` of what may be the user's own, the same in every process.

    Python's own for a class without one says where the object lies in memory, and nothing of what it holds;
    the place is left out. Objects that differ in settings need a `repr` to be told apart.
    """
    return _ADDRESS.sub("", repr(value))


def _run_file(path: Path, what: str) -> ModuleType:
    """The module of a file, run once a process."""
    if not path.is_file():
        raise UsageError(f"{what} must name an existing file; there is no {path}. Check the path.")
    key = f"expunge_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up
    try:
        note_run(path)
        with _neighbours(path.resolve().parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise failed(str(path), what, error) from error
    return module


def _import(name: str, what: str) -> ModuleType:
    here, new = Path.cwd(), name not in sys.modules
    try:
        with _neighbours(here):
            module = importlib.import_module(name)
        if new and (file := file_of(f"{name}:")) is not None:
            note_run(file)
        return module
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise failed(f"module {name}", what, error) from error
        raise UsageError(
            f"{what} must name an existing module; there is no module {error.name}, neither in {here} nor "
            "installed. Check the name, or name a file: FILE.py:NAME."
        ) from None
    except Exception as error:
        raise failed(f"module {name}", what, error) from error


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported: before all others inside, after all others from then on."""
    place = str(folder)
    if place in sys.path:
        yield
        return
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
        sys.path.append(place)


def failed(place: str, what: str, error: Exception) -> UsageError:
    """What is to be said of code of the user's that raises.

    Args:
        place: Its file, module or name.
        what: What it should be, for messages.
        error: As it came.
    """
    return UsageError(f"{what}: {place} must run; it raises {raised(error)}. Mend it.")
