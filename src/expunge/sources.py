"""Raw rows from files, folders, the Hub and memory, each with the number of its line or row.

Knows nothing of what a row should hold (that is `records`), only how it is stored. Whatever is wrong
with a source is said in one `UsageError` that names the place, the rule and the fix.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import importlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.errors import UsageError

Numbered = Iterator[tuple[int, Any]]

FORMATS = ".jsonl, .json, .csv (each also as .gz) or .parquet"
_NAME = re.compile(r"[^\W\d][\w.-]{0,39}")
_HUB_ID = re.compile(r"(?P<path>[\w-][\w.-]*/[\w.-]+)(:(?P<subset>[\w.-]+))?")


@dataclass(frozen=True)
class Source:
    """An opened source. Reading its rows may raise `UsageError`.

    Attributes:
        label: File, Hub id, or a description of the object in memory.
        rows: (number from 1, row) in order; blank lines are skipped but counted.
        unit: What the numbers count, "line" or "row".
        sha256: Hash of the file's bytes, empty when there is no file.
    """

    label: str
    rows: Numbered
    unit: str = "row"
    sha256: str = ""


def open_source(source: str | Path | Iterable[Any], name: str, split: str) -> Source:
    """Open a file, a folder, a Hub id or rows in memory.

    Args:
        source: See `records.read_records`.
        name: Role of the set, for messages and for `<name>.jsonl` in a folder of several files.
        split: Split of a Hub data set.

    Raises:
        UsageError: There is no such source, or it cannot be read.
        ValueError: `source` is of a type that cannot hold rows.
    """
    if not isinstance(source, str | Path):
        return _from_memory(source, name)
    path = Path(source).expanduser()
    if not str(source).strip():
        raise UsageError(f"The {name} set must have a source; found an empty path. Name a {FORMATS} file.")
    if path.is_dir():
        return _from_folder(path, name, split)
    if path.exists():
        return _from_file(path)
    hub = _HUB_ID.fullmatch(str(source))
    if hub and not _format(path) and not path.parent.exists():
        return _from_hub(hub["path"], hub["subset"], split)
    raise UsageError(f"The {name} set must be an existing file; there is no {source}. {_nearest(path)}")


REDACT: ContextVar[bool] = ContextVar("redact", default=False)
"""Whether messages keep even the names of fields to themselves, and what other libraries say."""


def shown(value: Any) -> str:
    """Of what kind and size a value from a user's data is.

    Its words may be what is to be removed, and messages end in logs: the place tells where to look.

    Example:
        >>> shown("555-0147"), shown(["a", "b"]), shown(None)
        ('a text of 8 characters', 'a list of 2', 'null')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"a text of {len(value)} characters" if value.strip() else "an empty text"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | Mapping):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return f"a value of type {type(value).__name__}"


def names(found: Iterable[Any]) -> str:
    """Names of fields as they stand in the data; how many where that is redacted.

    A table without a header has a row in their place: what does not look like a name is counted only.
    """
    every = [str(name) for name in found]
    told = [] if REDACT.get() else [name for name in every if _NAME.fullmatch(name)]
    rest = len(every) - len(told)
    more = [f"{rest} name{'s' * (rest > 1)} not shown"] if rest else []
    return ", ".join([*map(repr, told), *more]) or "no field"


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} either. Name a {FORMATS} file, or a Hub id such as org/name."
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1)
    return f"Did you mean {folder / near[0]}?" if near else f"Name a {FORMATS} file."


def _from_memory(source: Any, name: str) -> Source:
    if isinstance(source, Mapping):
        raise UsageError(
            f"The {name} set must be a sequence of rows; found a mapping of {names(source)}. "
            "Pick one of them."
        )
    if not isinstance(source, Iterable) or isinstance(source, bytes):
        raise ValueError(f"`source` must be a path, a Hub id or rows. Found {type(source).__name__}.")
    return Source(f"the {name} {type(source).__name__}", enumerate(source, start=1))


# --- files and folders -----------------------------------------------------------------------------


def _format(path: Path) -> str:
    """The suffix that says how a file is stored, without .gz; empty when nothing here reads it."""
    if path.suffix == ".parquet":
        return ".parquet"
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in _READERS else ""


def _from_folder(folder: Path, name: str, split: str) -> Source:
    for saved in (folder, folder / split):
        if (saved / "state.json").exists():
            rows = _datasets(str(saved), "load_from_disk", str(saved))
            return replace(_from_memory(rows, name), label=str(saved))
    files = sorted(path for path in folder.iterdir() if path.is_file() and _format(path))
    wanted = [path for stem in (name, split) for path in files if path.name.split(".")[0] == stem]
    if len(files) == 1 or wanted:
        return _from_file((wanted or files)[0])
    found = ", ".join(path.name for path in files or sorted(folder.iterdir())) or "nothing"
    rule = f"must hold one {FORMATS} file, or one that is called {name}"
    raise UsageError(f"Folder {folder} {rule}; found {found}. Name the file.")


def _from_file(path: Path) -> Source:
    suffix = _format(path)
    if not suffix:
        raise UsageError(
            f"{path} must be a {FORMATS} file; its suffix is {path.suffix!r}. Convert or rename it."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} must be readable; {error.strerror}. Check its kind and permissions."
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if suffix == ".parquet":
        return Source(str(path), enumerate(_parquet(content, path), start=1), sha256=digest)
    unit = "row" if suffix == ".json" else "line"
    return Source(str(path), _READERS[suffix](_decode(_unpack(content, path), path), path), unit, digest)


def _unpack(content: bytes, path: Path) -> bytes:
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} must be a whole gzip file; {error}. Compress it again.") from None


def _decode(content: bytes, path: Path) -> str:
    body = content.removeprefix(b"\xef\xbb\xbf")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        found = f"the byte 0x{body[error.start]:02x}"
        raise UsageError(
            f"{path}, line {line}: text must be UTF-8; found {found}. Save it as UTF-8."
        ) from None


def _json_lines(text: str, path: Path) -> Numbered:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            found = f"{shown(line.strip())} ({why}). Mend or remove it."
            raise UsageError(
                f"{path}, line {number}: a line must be one JSON object; found {found}"
            ) from None


def _json_list(text: str, path: Path) -> Numbered:
    try:
        content = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        fix = "JSON Lines belong in a .jsonl file." if error.msg == "Extra data" else "Mend the file."
        raise UsageError(f"{path}, line {error.lineno}: the file must be JSON; {error.msg}. {fix}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} must be JSON; {error}. Mend the file.") from None
    if not isinstance(content, list):
        raise UsageError(
            f"{path} must hold a JSON list of objects; found {shown(content)}. Wrap them in [...]."
        )
    yield from enumerate(content, start=1)


def _csv(text: str, path: Path) -> Numbered:
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            if cells and header:
                yield start, _csv_row(header, cells, f"{path}, line {start}")
            elif cells:
                header = _csv_header(cells, f"{path}, line {start}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path}, line {start}: a row must be CSV; {error}. Check its quotes.") from None
    finally:
        csv.field_size_limit(limit)


def _csv_header(cells: list[str], place: str) -> list[str]:
    if len(set(cells)) < len(cells):
        raise UsageError(f"{place}: column names must differ; found {names(cells)}. Rename one.")
    return cells


def _csv_row(header: list[str], cells: list[str], place: str) -> dict[str, str]:
    if len(cells) != len(header):
        fix = 'Put cells that hold commas or line breaks in "double quotes".'
        raise UsageError(
            f"{place}: a row must have {len(header)} cells, as the header; found {len(cells)}. {fix}"
        )
    return dict(zip(header, cells, strict=True))


def _parquet(content: bytes, path: Path) -> list[dict[str, Any]]:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    try:
        rows: list[dict[str, Any]] = parquet.ParquetFile(io.BytesIO(content)).read().to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} must be a Parquet file; {type(error).__name__}. Write it again.") from None
    return rows


_READERS: dict[str, Callable[[str, Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
}


# --- the Hub ---------------------------------------------------------------------------------------


def _from_hub(path: str, subset: str | None, split: str) -> Source:
    source = f"{path}:{subset}" if subset else path
    rows = _datasets(source, "load_dataset", path, subset, split=split)
    return replace(_from_memory(rows, source), label=f"{source}, split {split}")


def _datasets(source: str, loader: str, *args: str | None, **options: str) -> Any:
    """What a loader of `datasets` returns. Whatever it raises, the source or the connection is at fault."""
    try:
        return getattr(importlib.import_module("datasets"), loader)(*args, **options)
    except Exception as error:
        quotes = REDACT.get() or _may_quote(error)
        why = type(error).__name__ if quotes else " ".join(str(error).split())[:300].rstrip(".")
        fix = "Name a local file, or check the Hub id (org/name or org/name:subset), split and connection."
        raise UsageError(
            f"`datasets` must be able to load {source}, which is no {FORMATS} file; it says: {why}. {fix}"
        ) from error


def _may_quote(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, came from reading values: such errors quote them."""
    if error is None:
        return False
    kind = type(error)
    reads = kind.__module__.startswith(("pyarrow", "pandas"))
    generates = kind.__name__.startswith("DatasetGeneration")
    return reads or generates or _may_quote(error.__cause__ or error.__context__)
