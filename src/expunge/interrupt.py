"""Ctrl-C that waits for a good moment, and a termination that is treated as one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_ECHO = 5.0
"""Seconds within which a signal may reach a rank again: it comes from the terminal or the scheduler, and once
more from the launcher, which passes on what it gets.
"""


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is noted in `requested`; the second acts as usual.

    One of several ranks takes what comes within five seconds of the first for its echo, also after it has
    been left. Outside the main thread, where signals cannot be caught, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._echo = _ECHO if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, self._without_echo(handler) if self.requested and self._echo else handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if self._echoes:
                return
            raise KeyboardInterrupt
        self.requested, self._since = True, time.monotonic()
        later = f" after {self._echo:.0f} seconds" if self._echo else ""
        logger.warning("stopping after this step, with a checkpoint; Ctrl-C again%s quits at once.", later)

    @property
    def _echoes(self) -> bool:
        return time.monotonic() - self._since < self._echo

    def _without_echo(self, handler: Any) -> Callable[[int, FrameType | None], None]:
        """What a signal did before, but for an echo."""

        def act(number: int, frame: FrameType | None) -> None:
            if not self._echoes:
                signal.signal(number, handler)
                signal.raise_signal(number)

        return act


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """While entered, SIGTERM does what Ctrl-C does: what stands open is closed, temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
