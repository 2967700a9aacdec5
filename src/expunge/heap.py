"""The memory of a process that trains on the CPU: what it keeps for the next step, and what it gives back.

A training step frees and takes gigabytes. The C library hands large blocks back to the kernel and faults
them in again page by page; on the two-core machine of `benchmarks/results` that was half of the time of a
step.

Batches of many lengths have a product of matrices for every number of tokens, and oneDNN, which computes
these in bf16, keeps compiled code and packed weights of the last 1,024 of them, torch another 1,024: on a
processor with AMX about 1 MB each (100 lengths of a single layer: 249 MB, and 18 MB with the limits below).
A step needs those of its own two or three shapes again and again, and no others.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt (malloc.h)."""

CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""Products of matrices that are kept compiled; what the user's environment says wins."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; the peak stays, the level between steps does not fall.

    Call it before the first forward pass: limits of caches are read then.

    Returns:
        Whether the C library took the setting: glibc does, others do without.
    """
    for name, capacity in CACHES.items():
        os.environ.setdefault(name, capacity)
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
