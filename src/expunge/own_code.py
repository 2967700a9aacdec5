"""Where the code of a user's own parts stands: whether it is the package's, in which file, on which line.

Knows classes, functions and errors; knows no method and no run.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

_PLAIN = (str, bytes, int, float, complex, type(None), Tensor, ModuleType)

UNKNOWN = "unknown"
"""In place of a hash: the code stands in no file and no cell that could be read."""

_PACKAGE = "expunge"
_HERE = Path(__file__).resolve().parent
_RAN: dict[Path, str] = {}
"""Hash of a file as it was when it was run by name: the code in memory does not change with its file."""
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def is_ours(code: type | Callable[..., Any]) -> bool:
    """Whether a class or a function is of this package."""
    return str(getattr(code, "__module__", "")).partition(".")[0] == _PACKAGE


def source_file(code: type | Callable[..., Any]) -> Path | None:
    """The file that a class or a function stands in."""
    try:
        path = inspect.getsourcefile(code)
    except (TypeError, OSError):  # a class of a module that is no file
        return None
    return Path(path).resolve() if path and Path(path).is_file() else None


def note_run(path: Path) -> None:
    """A file is about to be run, or has just been: its hash is that of now until it is run again."""
    _RAN[path.resolve()] = hashlib.sha256(path.read_bytes()).hexdigest()


def _file_hash(path: Path) -> str:
    return _RAN.get(path) or hashlib.sha256(path.read_bytes()).hexdigest()


def code_hashes(parts: Iterable[object], files: Iterable[Path] = ()) -> dict[str, str]:
    """Hashes of the code behind objects, as far as it is the user's: their classes, and what they hold.

    What that code imports from elsewhere is not seen, and what is installed counts by the files named alone.
    Of a script that is run itself, and of a notebook, only the classes and functions count: the rest may
    change, with `resume=True` for example.

    Args:
        parts: Objects, classes or functions.
        files: Further files.

    Returns:
        Name of a file (a class or a function, where there is none that counts) -> SHA-256, or `UNKNOWN`.
    """
    found: dict[str, str] = {}
    entries = [(path.name, _file_hash(path.resolve())) for path in files]
    for name, sha256 in [*entries, *map(_entry, _codes(parts))]:
        others = (name if i == 1 else f"{name} {i}" for i in range(1, 1 << 16))
        found[next(key for key in others if found.get(key, sha256) == sha256)] = sha256
    return dict(sorted(found.items()))


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """A sentence's end on the first file in which two sets of hashes differ; "" where they are alike."""
    for name in sorted({*before, *now}):
        if name not in before:
            return f"{name} was not recorded there"
        if name not in now:
            return f"{name} belongs to it no longer"
        if before[name] != now[name]:
            return f"{name} has changed since"
    return ""


def raised(error: BaseException) -> str:
    """An error in one line: its type, its words, and the line of the user's code that it comes from."""
    words = " ".join(str(error).split())[:300].rstrip(".")
    place = line_of(error)
    return f"{type(error).__name__}{': ' if words else ''}{words}{f' ({place})' if place else ''}"


def line_of(error: BaseException) -> str:
    """The innermost line of the user's own code that an error passed: "FILE, line N"; else ""."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


@functools.cache
def _is_users(file: str) -> bool:
    """Whether a file is neither of this package, nor of Python, nor installed."""
    if file.startswith("<frozen"):
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in (_HERE, *_INSTALLED))


def _codes(parts: Iterable[object]) -> Iterator[type | FunctionType]:
    """Classes (with those that they are made from) and functions behind objects, the user's, each once."""
    waiting, seen, given = list(parts)[::-1], set(), set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        for code in _made_of(value):
            if code not in given and _is_own(code):
                given.add(code)
                yield code
        waiting += _held(value)


def _made_of(value: object) -> list[Any]:
    if isinstance(value, FunctionType):
        return [value]
    kind = value if isinstance(value, type) else type(value)
    return list(kind.__mro__)


def _held(value: object) -> list[object]:
    """What an object holds, last first."""
    if isinstance(value, type):
        return []
    if isinstance(value, FunctionType):
        return [getattr(value, "__wrapped__", None)]
    if isinstance(value, functools.partial):
        return [value.keywords, value.args, value.func]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, Mapping):
        return list(value.values())[::-1]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[::-1]
    return list(vars(value).values())[::-1] if hasattr(value, "__dict__") else []


def _is_own(code: type | FunctionType) -> bool:
    name = str(code.__module__)
    root = name.partition(".")[0]
    if root == _PACKAGE or root in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return name == "__main__" or file is None or _is_users(file)


@functools.cache
def _entry(code: type | FunctionType) -> tuple[str, str]:
    path = source_file(code)
    if path is not None and code.__module__ != "__main__":
        return path.name, _file_hash(path)
    text = _text(code)
    return code.__qualname__, hashlib.sha256(text.encode()).hexdigest() if text else UNKNOWN


def _text(code: type | FunctionType) -> str:
    """Source of a class or a function; of a class in a notebook's cell, that of its functions."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        functions = [one for one in vars(code).values() if isinstance(one, FunctionType)]
        return "" if isinstance(code, FunctionType) else "".join(_text(one) for one in functions)
