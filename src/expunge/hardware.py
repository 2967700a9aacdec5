"""What kinds of accelerator hold and do, as published; and how much of it training is assumed to reach."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.35
"""Assumed share of the published peak; short rows and two data sets per step rarely reach more."""

HEADROOM = 0.94
"""Share of an accelerator's memory that a run may fill: the rest is the driver's and fragmentation's."""


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Args:
        name: As the vendor writes it.
        memory: Bytes.
        peak: Dense bf16 multiply-adds as FLOP/s with fp32 accumulation, from the vendor's data sheet.
    """

    name: str
    memory: int
    peak: float


GB = 10**9
GIB = 2**30

DEVICES = {
    "l4": Device("NVIDIA L4", 24 * GIB, 121e12),
    "a10": Device("NVIDIA A10", 24 * GIB, 125e12),
    "rtx4090": Device("NVIDIA RTX 4090", 24 * GIB, 165.2e12),
    "l40s": Device("NVIDIA L40S", 48 * GIB, 362e12),
    "a100-40gb": Device("NVIDIA A100 40 GB", 40 * GIB, 312e12),
    "a100-80gb": Device("NVIDIA A100 80 GB", 80 * GIB, 312e12),
    "h100": Device("NVIDIA H100 SXM 80 GB", 80 * GIB, 989.4e12),
    "h200": Device("NVIDIA H200 SXM 141 GB", 141 * GB, 989.4e12),
    "b200": Device("NVIDIA B200 180 GB", 180 * GB, 2250e12),
    "mi300x": Device("AMD MI300X 192 GB", 192 * GB, 1307.4e12),
}
"""Names on the command line; data sheets as of 2025. `cpu` is this machine."""
