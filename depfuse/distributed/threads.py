"""Threads: no more than the CPUs of a container or than the work is enough for, and none that waits awake."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

SET_BY_HAND = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # torch follows these
ENOUGH = 8e6  # multiply-adds of an image from which several threads are quicker than one, in batches of 125
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what says how OpenMP's threads wait for each other


def available_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: those that it is bound to, and its control groups' quota, rounded up.

    Read are cgroup v1 (`cpu.cfs_quota_us` over `cpu.cfs_period_us`) and v2 (`cpu.max`) of the process's own group and
    of all above it, of which the smallest quota counts.

    Parameters
    ----------
    root
        Of the file system.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and ../scheduler/sched-bwc.html.
    """
    return min([_bound(), *(math.ceil(quota) for quota in _quotas(root))])


def considerate(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return the variables to set before torch is imported, so that its threads suit the machine and what else it does.

    `OMP_NUM_THREADS` is the number of CPUs where a quota is less than there are. `OMP_WAIT_POLICY=PASSIVE` lets threads
    that wait for each other sleep: where another program keeps a core busy, waiting threads that spin take what the one
    that they wait for needs, and a fusion takes several times as long. What the environment says stays.

    Source: OpenMP 5.2, section 21.7 (OMP_WAIT_POLICY).
    """
    found = {}
    if (count := available_cpus(root)) < _bound() and not any(environment.get(name) for name in SET_BY_HAND):
        found["OMP_NUM_THREADS"] = str(count)
    if not any(environment.get(name) for name in WAITING):
        found["OMP_WAIT_POLICY"] = "PASSIVE"
    return found


_before: ContextVar[list[int] | None] = ContextVar("threads before the work chose them", default=None)


@contextmanager
def chosen_by_work(environment: Mapping[str, str]) -> Iterator[None]:
    """Let `suit_threads` choose the number of torch's threads within the block, and restore it at the end.

    Not where the environment says how many, or torch is imported already: its number is then the caller's.
    """
    free = "torch" not in sys.modules and not any(environment.get(name) for name in SET_BY_HAND)
    before: list[int] = []
    token = _before.set(before if free else None)
    try:
        yield
    finally:
        _before.reset(token)
        if before:
            import torch

            torch.set_num_threads(before[0])


def may_suit() -> bool:
    """Tell whether `suit_threads` has a choice; if not, the work need not be counted."""
    return _before.get() is not None


def suit_threads(multiply_adds: float) -> None:
    """Compute with one thread from now on, within `chosen_by_work`, where the networks are small.

    Threads of a convolution wait for each other, in its backward pass awake. For a batch of a small network the waiting
    takes what the second thread brings, and many times as long where another program keeps a core busy. The number
    follows from the networks alone, so that every run on a machine rounds alike.

    Parameters
    ----------
    multiply_adds
        Of the largest network, for one image; networks of fewer than `ENOUGH` are small.
    """
    before = _before.get()
    if before is None or multiply_adds >= ENOUGH:
        return
    import torch

    before.append(torch.get_num_threads())
    torch.set_num_threads(1)


def limit_threads() -> int:
    """Let torch use no more threads than there are CPUs for this process, from now on; return their number.

    The command line does so by itself. A program of your own is left as it is unless it calls this; sums over many
    entries are rounded differently with another number of threads, and so is a child.
    """
    import torch

    if not any(os.environ.get(name) for name in SET_BY_HAND):
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    return torch.get_num_threads()


def _bound() -> int:
    """Count the CPUs that the process is bound to."""
    with suppress(AttributeError):  # of Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """List the quotas of a process's control groups, in CPUs; none where there are none or they cannot be read."""
    for line in _words(root / "proc/self/cgroup", "\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            for folder in _folders([root / "sys/fs/cgroup"], path):
                yield from _quota(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _folders([root / "sys/fs/cgroup" / name for name in {controllers, "cpu"}], path):
                yield from _quota([*_words(folder / "cpu.cfs_quota_us")[:1], *_words(folder / "cpu.cfs_period_us")[:1]])


def _folders(mounts: list[Path], path: str) -> Iterator[Path]:
    """List the folders of a control group and of those above it.

    A container may see its own group as the root and be told the host's path of it, which it then does not find.
    """
    group = PurePosixPath("/", path)
    for mount in mounts:
        for level in (group, *group.parents):
            yield mount / level.relative_to("/")


def _quota(words: list[str]) -> Iterator[float]:
    """Divide a quota by its period; nothing where there is none (`max`, or -1)."""
    try:
        quota, period = map(int, words)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota / period


def _words(file: Path, separator: str | None = None) -> list[str]:
    """Read the words of a file; none where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").split(separator)
    except (OSError, ValueError):
        return []
