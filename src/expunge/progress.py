"""What a run tells while it runs. Silent by default; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, str], None]
"""Takes how many units are done in all, and a few words on how it goes."""


@runtime_checkable
class Reporter(Protocol):
    """Is told of every phase of a run."""

    def phase(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A phase of `total` units."""
        ...


class Silent:
    """Tells nobody."""

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Advance]:
        yield lambda done, words: None


class Bars:
    """A progress bar with remaining time per phase; finished phases stay as one line.

    Args:
        console: Where to draw; a bar needs a terminal, elsewhere each phase is one line of text.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Advance]:
        if not self.console.is_terminal:
            self.console.print(f"{title} …", highlight=False)
            yield lambda done, words: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[words]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(title, total=max(total, 1), words="")
            yield lambda done, words: bars.update(task, completed=done, words=words)
