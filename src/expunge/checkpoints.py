"""Checkpoints that are whole or absent: written beside the others, listed, and only then given their name.

Knows files and their sizes; what stands in them is the business of those who write them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from expunge.disk import sync, sync_entry
from expunge.record import write_atomically

STAGING, MANIFEST = ".saving", "expunge_checkpoint.json"


def begin(folder: Path) -> Path:
    """An empty place, closed to other users, to write the next checkpoint into.

    Args:
        folder: Holds the checkpoints of a run.
    """
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True, mode=0o700)
    return staging


def publish(folder: Path, name: str, limit: int | None) -> Path:
    """Give a written checkpoint its name, once all of it is on the disk; then let older ones go.

    A kill at any moment leaves every checkpoint that has a name whole.

    Args:
        folder: Holds the checkpoints of a run.
        name: Of the checkpoint in the staging place.
        limit: How many to keep; None keeps all.
    """
    written, target = folder / STAGING / name, folder / name
    sizes = {str(p.relative_to(written)): p.stat().st_size for p in written.rglob("*") if p.is_file()}
    write_atomically(written / MANIFEST, json.dumps(sizes, indent=1))
    sync(written)
    if target.exists():  # of another run in this folder
        target.rename(folder / STAGING / f"{name}.old")
    written.rename(target)
    sync_entry(folder)
    _rotate(folder, target, limit)
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    return target


def abandon(folder: Path) -> None:
    """Remove what was written of a checkpoint that failed."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def newest(folder: Path, before: int | None = None) -> Path | None:
    """The whole checkpoint of the latest step (`before` a certain one), or None."""
    found = [path for path in folder.glob("checkpoint-[0-9]*") if before is None or step_of(path) < before]
    return max(filter(complete, found), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps taken at a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def complete(checkpoint: Path) -> bool:
    """Whether every file that was written is there, as long as it was."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _rotate(folder: Path, latest: Path, limit: int | None) -> None:
    """Keep the latest and the most recently written; a checkpoint that goes loses its name first."""
    others = [path for path in folder.glob("checkpoint-*") if path != latest]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in others[limit - 1 :] if limit else []:
        doomed = folder / STAGING / f"{path.name}.old"
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
