"""The machine that a benchmark runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def description(device: torch.device) -> dict[str, str | int]:
    """Return cores, processor, GPU where the device is one, and torch."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"cores": os.cpu_count() or 1, "processor": _processor(), **gpu, "torch": torch.__version__}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak_mib() -> float:
    """Return the most memory that this process has had resident, in MiB (Linux).

    From the kernel's own count, because `ru_maxrss` of a started process begins at that of the process it came from.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) / 1024
    raise RuntimeError("the kernel does not say VmHWM")
