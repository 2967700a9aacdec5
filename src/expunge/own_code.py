"""Where the code of a user's own parts stands: whether it is the package's, in which file, on which line.

Knows classes, functions and errors; knows no method and no run.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGE = "expunge"
_HERE = Path(__file__).resolve().parent
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def is_ours(code: type | Callable[..., Any]) -> bool:
    """Whether a class or a function is of this package."""
    return str(getattr(code, "__module__", "")).partition(".")[0] == _PACKAGE


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


def _is_users(file: str) -> bool:
    """Whether a file is neither of this package, nor of Python, nor installed."""
    if file.startswith("<frozen"):
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in (_HERE, *_INSTALLED))
