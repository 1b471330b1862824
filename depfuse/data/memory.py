"""Free memory of this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
GIBIBYTE = 2**30


def free_memory() -> int | None:
    """Return the bytes available without swapping; all of the machine's where only that is known, or None."""
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def too_much(needed: int) -> str | None:
    """Say how much memory is needed and free where it does not suffice: `20.0 GiB of memory, and 4.1 are free`."""
    free = free_memory()
    if free is None or needed <= free:
        return None
    return f"{needed / GIBIBYTE:.1f} GiB of memory, and {free / GIBIBYTE:.1f} are free"
