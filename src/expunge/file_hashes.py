"""What a folder holds, file by file, and how that differs from what it held.

A model is more than its weights: tokenizer, chat template, configuration and generation settings decide what
it says as well, and a file beside them may hold code. Knows bytes, and nothing of what they mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

IRREGULAR = "not a regular file"
"""In place of a hash: a link to a folder, a dangling link, a pipe. None of them is read."""


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder and of those in it, by its name there, sorted.

    Args:
        folder: Links to folders are named and not followed.
    """
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {name: _hash(path) for name, path in sorted((_name(path, folder), path) for path in found)}


def differences(folder: Path, recorded: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of files that are changed, missing or added, each with what is the matter.

    Args:
        folder: That is to hold what it held.
        recorded: `file_hashes` of then.
    """
    found = file_hashes(folder)
    for name in sorted({*found, *recorded}):
        if name not in found:
            yield name, "missing: the record names it"
        elif name not in recorded:
            yield name, "added: the record does not name it"
        elif found[name] != recorded[name]:
            yield name, f"changed: SHA-256 is {found[name][:16]}…, recorded is {recorded[name][:16]}…"


def _name(path: Path, folder: Path) -> str:
    """Relative, with slashes; what cannot be printed, or is no UTF-8, as escapes: names may be hostile."""
    name = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _hash(path: Path) -> str:
    if not path.is_file():
        return IRREGULAR
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
