"""Keeping freed memory for the next step, and giving it back between phases.

A training step on the CPU frees and takes gigabytes. The C library hands large blocks back to the
kernel and faults them in again page by page; on the two-core machine of `benchmarks/results` that
was half of the time of a step.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt (malloc.h)."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; the peak stays, the level between steps does not fall.

    Returns:
        Whether the C library took the setting: glibc does, others do without.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)


def give_back() -> bool:
    """Return to the system what is free now, between phases that need different blocks.

    What one phase leaves in pieces would otherwise stay beside what the next one takes. The next step faults
    its pages in again, once.

    Returns:
        Whether anything was returned.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    return bool(trim(0))
