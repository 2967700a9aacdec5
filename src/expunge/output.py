"""The folder that a run leaves: `model/`, `record.json`, `report.html`; `checkpoints/` while it runs.

Nothing that a user or an earlier run put there is touched before all input has been accepted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from expunge.errors import UsageError

CHECKPOINTS, MARKER = "checkpoints", ".expunge"


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
            written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output must be a folder; {folder} is a file. Choose another name.")
    occupied = folder.is_dir() and any(path.name != MARKER for path in folder.iterdir())
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("This folder is written by expunge.\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--output must be writable; {folder}: {error.strerror}. Choose another folder."
        ) from None
    return folder


def clear(folder: Path) -> None:
    """Empty a claimed folder: the input has been accepted, and the earlier run is to be replaced."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if _complete(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_checkpoints(folder: Path) -> None:
    """Remove checkpoints: the run has ended well."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _complete(checkpoint: Path) -> bool:
    """Whether both states were written to their end; the Trainer's is the last file of a checkpoint."""
    try:
        for name in ("expunge_state.json", "trainer_state.json"):
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
