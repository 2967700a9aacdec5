"""What the disk does to a run: one message when it fails, and folders that are whole or absent.

Knows no model and no record.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from expunge.errors import UsageError

FIXES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space of your quota",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "Choose a folder that can be written to",
    errno.EACCES: "Check its permissions",
    errno.EPERM: "Check its permissions",
    errno.EIO: "Check the disk",
    errno.ENOENT: "Put back what was moved or deleted",
    errno.ENOTDIR: "Put back what was moved or deleted",
    errno.ESTALE: "Mount the file system again",
}
"""Errors of the environment, each with what mends it."""

_WRITERS = ("PytorchStreamWriter", "file write failed", "unexpected pos", "os error")
"""Words by which torch and safetensors say that a file could not be written."""


@contextlib.contextmanager
def writing(what: str, place: Path) -> Iterator[None]:
    """Turn a failure to write into one message.

    Args:
        what: Is being written, with its article.
        place: Where.

    Raises:
        UsageError: The disk is full, read-only, gone, or fails.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not fails_to_write(error):
            raise
        raise UsageError(
            f"{what} must be written to {place}; {reason(error)}. {_fix(error)}, then give the same command "
            "again, with --resume for a run: what was written before is intact."
        ) from error


def fails_to_write(error: BaseException) -> bool:
    """Whether an error is the file system's and not a defect of ours."""
    if isinstance(error, OSError):
        return error.errno in FIXES
    return any(words in str(error) for words in _WRITERS)


def reason(error: BaseException) -> str:
    """What the file system says, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split())[:200].rstrip(".")


def _fix(error: BaseException) -> str:
    fix = FIXES.get(error.errno or 0) if isinstance(error, OSError) else None
    return fix or "Free some space, or choose another folder"


def sync(folder: Path) -> None:
    """Have every file of a folder on the disk before anything is renamed: it may survive a loss of power."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync_entry(path)


def sync_entry(path: Path) -> None:
    """The same of one file, or of one folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
