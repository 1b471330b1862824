"""Free memory of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Of a container, in both versions of control groups: how much it may take, how much it has, and what of that is cache.
_CONTAINERS = tuple(
    (folder / most, folder / taken, folder / "memory.stat")
    for folder, most, taken in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
)
GIBIBYTE = 2**30
KEPT = 0.25  # of the memory that is free, at most, for calibration data


def free_memory() -> int | None:
    """Return the bytes available without swapping, to the machine and to the container that this process is in.

    All of the machine's where only that is known; None where nothing is.
    """
    sizes = [size for size in (_free_on_machine(), _free_in_container()) if size is not None]
    return min(sizes, default=None)


def calibration_room() -> float:
    """Return the bytes that calibration data may take."""
    free = free_memory()
    return float("inf") if free is None else KEPT * free


def _free_in_container(places: Sequence[tuple[Path, Path, Path]] = _CONTAINERS) -> int | None:
    for most, taken, statistics in places:
        with suppress(OSError, ValueError):  # where there is no limit, the file says "max"
            left = int(most.read_text(encoding="ascii")) - int(taken.read_text(encoding="ascii"))
            lines = (line.split() for line in statistics.read_text(encoding="ascii").splitlines())
            return max(0, left + sum(int(size) for name, size in lines if name == "inactive_file"))
    return None


def _free_on_machine() -> int | None:
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
