"""The folder that a run leaves: `model/`, `record.json`, `report.html`; `checkpoints/` while it runs.

Nothing that a user or an earlier run put there is touched before all input has been accepted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from expunge import checkpoints, locks
from expunge.errors import UsageError

CHECKPOINTS, MARKER = "checkpoints", ".expunge"

OWN = (MARKER, locks.LOCK)
"""Files that say nothing of a run."""


def claim(
    folder: Path, *, resume: bool = False, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> Path:
    """Make sure that a run may write into a folder, and create it; what is in it stays.

    Args:
        folder: The output folder.
        resume: It may hold an interrupted run.
        overwrite: It may hold an earlier run, which `clear` will remove.
        inputs: Paths that the run reads; they must not lie in a folder that will be cleared.

    Raises:
        UsageError: It is a file, holds files that the flags do not allow, holds an input, or cannot be
            written to; another process writes to it.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output must be a folder; {folder} is a file. Choose another name.")
    if (folder / locks.LOCK).is_file():
        locks.hold(folder)
    occupied = folder.is_dir() and any(path.name not in OWN for path in folder.iterdir())
    ours = (folder / MARKER).is_file() or (folder / "record.json").is_file()
    if occupied and not (resume or overwrite):
        raise UsageError(
            f"--output must be empty or new; {folder} holds files. "
            "Give --resume to continue an interrupted run, --overwrite to replace it, or another folder."
        )
    if occupied and not ours:
        raise UsageError(
            f"--resume and --overwrite must name a folder that expunge wrote; {folder} has no record of a "
            "run. Choose another folder, or empty this one yourself."
        )
    inside = [path for path in inputs if path.exists() and folder.resolve() in path.resolve().parents]
    if overwrite and inside:
        raise UsageError(
            f"--overwrite must not remove an input; {inside[0]} lies in {folder}. Move one of them."
        )
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        locks.hold(folder)
        locks.made(absent, (*OWN, CHECKPOINTS))
        mark(folder)
    except OSError as error:
        raise UsageError(
            f"--output must be writable; {folder}: {error.strerror}. Choose another folder."
        ) from None
    return folder


def mark(folder: Path) -> None:
    """Say in a folder, which is made if need be, that it is ours to continue and to replace."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("This folder is written by expunge.\n", encoding="utf-8")


def clear(folder: Path) -> None:
    """Empty a claimed folder: the input has been accepted, and the earlier run is to be replaced."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in OWN:
            path.unlink()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return checkpoints.newest(folder / CHECKPOINTS)


def tidy(folder: Path) -> None:
    """Remove checkpoints and what killed processes left: the run has ended, and its record is written."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for left in (*folder.glob(".model.*"), *folder.glob(".record.json.*"), *folder.glob(".report.html.*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def private(folder: Path) -> Path:
    """A folder inside the output, created closed to other users."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
