"""What is seen of a verb: bars while it runs, a table or JSON at its end, one message if it fails."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError
from rich.console import Console

from expunge.disk import FIXES, reason
from expunge.errors import UsageError
from expunge.interrupt import termination_as_interrupt

DIVERGED = 3
"""Exit status of a run whose losses or weights left all bounds; its record says more."""


def guarded(call: Callable[[], Any]) -> int:
    """Exit status of a call; what the user can mend is one message on standard error."""
    _hush()
    errors = Console(stderr=True, highlight=False)
    try:
        with termination_as_interrupt():
            call()
    except (UsageError, CycloptsError) as error:
        errors.print(f"[red]expunge:[/red] {_plain(error)}", soft_wrap=True)
        return 2
    except OSError as error:
        if error.errno not in FIXES:
            raise
        errors.print(f"[red]expunge:[/red] {_plain(_environment(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("expunge: interrupted at once; nothing more was written.")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _environment(error: OSError) -> UsageError:
    """What the file system did to us, as a message: a full disk, a folder that is gone."""
    where = f"{error.filename}: " if error.filename else ""
    fix = FIXES[error.errno or 0]
    return UsageError(f"Files must be readable and writable; {where}{reason(error)}. {fix}, then try again.")


def _plain(error: Exception) -> str:
    return str(error).replace("[", r"\[")


def _hush() -> None:
    """Libraries' notices are not the user's business; ours and errors are."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large blocks in huge pages, fewer faults
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"torch|transformers|accelerate")
    logging.basicConfig(level=logging.WARNING, format="expunge: %(message)s")
    logging.getLogger("expunge").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it misses faster kernels


def reporter(silent: bool) -> Any:
    """Bars on standard error, or nothing; libraries fall silent either way."""
    from transformers.utils import logging as transformers_logging

    from expunge.heap import keep_freed_memory
    from expunge.progress import Bars, Silent

    keep_freed_memory()
    silent = silent or not _leads()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return Silent() if silent else Bars(Console(stderr=True, highlight=False))


def _leads() -> bool:
    """Whether this is the process that speaks: the first of a launch, by the launcher's words."""
    return os.environ.get("RANK", "0") == "0"


def finish(result: Any, *, quiet: bool, as_json: bool) -> None:
    """Show the result of a verb; exit status 130 if it was interrupted, 3 if it diverged."""
    if _leads():
        show(result.record, result.folder, quiet=quiet, as_json=as_json)
    if result.record.stop and result.record.stop.reason == "interrupted":
        raise SystemExit(130)
    if result.record.stop and result.record.stop.reason == "diverged":
        raise SystemExit(DIVERGED)


def show(record: Any, folder: Path | None, *, quiet: bool, as_json: bool) -> None:
    """A record as a table or as JSON, and where its page is."""
    from pydantic_core import to_json

    from expunge.summary import summary, table

    if as_json:
        print(to_json(summary(record, folder), inf_nan_mode="null").decode())
    elif not quiet:
        console = Console(highlight=False)
        for part in table(record):
            console.print(part)
        if folder:
            console.print(f"\nReport: {(folder / 'report.html').resolve()}", soft_wrap=True, markup=False)


def audited(record: Any, folder: Path, *, quiet: bool, as_json: bool) -> None:
    """An audit as a table or as JSON, and where its page is."""
    from expunge.report.audit import table

    if not _leads():
        return
    if as_json:
        print(record.model_dump_json())
    elif not quiet:
        console = Console(highlight=False)
        for part in table(record):
            console.print(part)
        console.print(f"\nReport: {(folder / 'report.html').resolve()}", soft_wrap=True, markup=False)


def compared(found: Any, folder: Path, *, quiet: bool, as_json: bool) -> None:
    """A comparison as a table or as JSON; exit status 130 if interrupted, 2 if no trial came to an end."""
    from expunge.report.comparison import table

    if as_json:
        print(found.model_dump_json())
    elif not quiet:
        console = Console(highlight=False)
        for part in table(found):
            console.print(part)
        console.print(f"\nReport: {(folder / 'report.html').resolve()}", soft_wrap=True, markup=False)
    states = [trial.status for trial in found.trials]
    if "interrupted" in states:
        raise SystemExit(130)
    if all(state == "failed" for state in states):
        raise UsageError(f"No trial came to an end; the first one: {found.trials[0].error}")
