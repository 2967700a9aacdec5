"""What a run that failed leaves of its error: `error.txt` in its folder, for its owner's eyes alone.

A traceback may quote a record in its message. Redacted, it is types and places: which error, in which line of
which file, and the same of what led to it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from expunge import output
from expunge.errors import UsageError
from expunge.record import write_atomically

FILE = "error.txt"


def leave(error: BaseException, folder: Path, *, redact: bool) -> Path | None:
    """Write an error's traceback into a run's folder, which is made if the run never came so far.

    Args:
        error: As it was caught.
        folder: The run's own.
        redact: Types and places only.

    Returns:
        The file; None where it could not be written: the disk may be what failed.
    """
    text = "\n".join(_places(error)) + "\n" if redact else "".join(traceback.format_exception(error))
    try:
        if not folder.exists():
            output.mark(folder)
        return write_atomically(folder / FILE, text, private=True)
    except (OSError, UsageError):
        return None


def forget(folder: Path) -> None:
    """The run has gone on since: its earlier error is history."""
    (folder / FILE).unlink(missing_ok=True)


def said(error: BaseException, *, redact: bool) -> str:
    """An error in a few words: the record is no log."""
    if not redact:
        return f"{type(error).__name__}: {str(error).strip()}"[:500]
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in innermost)
    return f"{type(error).__name__}{place}"


def _places(error: BaseException) -> Iterator[str]:
    """Types and places of an error, after those of what led to it."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _places(cause)
        yield "which led to"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"  {frame.filename}, line {frame.lineno}, in {frame.name}"
    yield type(error).__qualname__
