"""Peak memory of a process."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """Return the most memory that this process has had resident, in MiB (Linux).

    From the kernel's own count, because `ru_maxrss` of a started process begins at that of the process it came from.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) / 1024
    raise RuntimeError("the kernel does not say VmHWM")
