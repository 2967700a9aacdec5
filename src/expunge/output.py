"""The folder that a run leaves: `model/`, `record.json`, `report.html`; `checkpoints/` while it runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from expunge.errors import UsageError

CHECKPOINTS = "checkpoints"


def claim(folder: Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Create the output folder, or take over an existing one.

    Raises:
        UsageError: It is a file, is not empty (and neither flag is given), or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output must be a folder; {folder} is a file. Choose another name.")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and overwrite and not resume:
        _clear(folder)
    elif occupied and not resume:
        raise UsageError(
            f"--output must be empty or new; {folder} holds files. "
            "Give --resume to continue an interrupted run, --overwrite to replace it, or another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / ".expunge"
        marker.write_text("This folder is written by expunge.\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--output must be writable; {folder}: {error.strerror}. Choose another folder."
        ) from None
    return folder


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [
        path
        for path in (folder / CHECKPOINTS).glob("checkpoint-*")
        if (path / "expunge_state.json").is_file()
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_checkpoints(folder: Path) -> None:
    """Remove checkpoints: the run has ended well."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Empty a folder that an earlier run wrote; refuse any other."""
    if not ((folder / ".expunge").is_file() or (folder / "record.json").is_file()):
        raise UsageError(
            f"--overwrite must name a folder that expunge wrote; {folder} has no record of a run. "
            "Choose another folder, or empty this one yourself."
        )
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
