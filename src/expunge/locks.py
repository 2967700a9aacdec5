"""One process at a time in an output folder, and no folder left of a command that was refused."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout

from expunge import ranks
from expunge.errors import UsageError

LOCK = ".lock"
"""The file in an output folder that a running process holds; what a dead one left does not count."""

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Verb:
    """What a verb under way will give back, and the folders that it holds."""

    stack: contextlib.ExitStack
    held: set[Path]


_verb: ContextVar[_Verb | None] = ContextVar("verb", default=None)


def exclusive(verb: Callable[P, R]) -> Callable[P, R]:
    """A verb that holds the output folders that it claims until it ends, however it ends."""

    @functools.wraps(verb)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        return copy_context().run(_run, functools.partial(verb, *args, **kwargs))

    return held


def _run(verb: Callable[[], R]) -> R:
    """In a context of its own: what is set there is forgotten with it."""
    outer = _verb.get()
    with contextlib.ExitStack() as stack:
        _verb.set(_Verb(stack, set(outer.held) if outer else set()))
        return verb()


def hold(folder: Path) -> None:
    """Hold a folder until the verb ends; outside a verb, only see that nobody holds it.

    Raises:
        UsageError: Another run holds it, or it cannot be written to.
    """
    verb, place = _verb.get(), folder.resolve()
    if not ranks.first() or (verb and place in verb.held):
        return
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"--output must not be in use; another run writes to {folder}. Wait for it, stop it, or choose "
            "another folder."
        ) from None
    except NotImplementedError:  # an older filelock, on a file system without locks
        logger.warning("%s cannot be locked: see to it that no other run writes there.", folder)
        return
    except OSError as error:
        raise UsageError(
            f"--output must be writable; {folder}: {error.strerror}. Choose another folder."
        ) from None
    if verb is None:
        lock.release()
    else:
        verb.held.add(place)
        verb.stack.callback(lock.release)


def made(folders: Sequence[Path], files: Sequence[str]) -> None:
    """Let folders that were created now go again if the verb fails before anything else stands in them.

    Args:
        folders: Those that did not exist, innermost first.
        files: Names in the innermost one that do not count, folders among them if they are empty.
    """
    if (verb := _verb.get()) is not None and folders:
        verb.stack.push(functools.partial(_unmake, folders, files))


def _unmake(
    folders: Sequence[Path],
    files: Sequence[str],
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> bool:
    if error is None or any(_counts(path, files) for path in folders[0].iterdir()):
        return False
    with contextlib.suppress(OSError):
        for path in folders[0].iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        for folder in folders:
            folder.rmdir()
    return False


def _counts(path: Path, files: Sequence[str]) -> bool:
    return path.name not in files or (path.is_dir() and any(path.iterdir()))
