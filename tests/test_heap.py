"""What a process keeps: memory does not grow with the number of lengths that it has seen."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.heap import CACHES

GROWTH = """
import torch
from expunge.heap import keep_freed_memory

keep_freed_memory()
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
weights = [torch.randn(576, 1536, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
for tokens in range(400, 280, -1):  # the largest first: a smaller one needs no new memory for its numbers
    rows = torch.randn(tokens, 576, dtype=torch.bfloat16, requires_grad=True)
    for weight in weights:
        (rows @ weight).sum().backward()
    if tokens == 380:
        start = resident()
print(resident() - start)
"""


def run(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in CACHES}
    found = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_lengths_seen():
    """100 more lengths: 249 MB without limits on a processor with AMX, 18 MB with them.

    Where no instruction multiplies in bf16, nothing is kept, and to see it takes five minutes.
    """
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "amx_bf16" not in flags and "avx512_bf16" not in flags and "x86" in platform.machine():
        pytest.skip("this processor has no products of matrices in bf16")
    if float(run(GROWTH, **dict.fromkeys(CACHES, "1024"))) < 120:
        pytest.skip("this processor's products of matrices take no memory worth a limit")
    assert float(run(GROWTH)) < 120


def test_what_the_environment_says_wins():
    code = "import os; from expunge import heap; heap.keep_freed_memory(); print(os.environ['{}'])"
    name = next(iter(CACHES))
    assert run(code.format(name), **{name: "7"}) == "7"
    assert run(code.format(name)) == CACHES[name]
