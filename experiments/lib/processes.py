"""Work that is done in several processes, each of which ends with the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class CellError(Exception):
    """Cells that failed, or a process that died; the rows of all others are in the file."""


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, processes: int, threads: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what `work`, a function of a module, makes of it, as it is finished.

    Raises
    ------
    CellError
        A process died.
    """
    if processes == 1:
        torch.set_num_threads(threads)
        for item in items:
            yield item, work(item)
        return
    # Not forked: a process that has computed with several threads cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, begin_process, (threads,))
    try:
        running = {pool.submit(work, item): item for item in items}
        for done in as_completed(running):
            yield running[done], done.result()
    except BrokenProcessPool:
        raise CellError(
            "a process died, perhaps for want of memory; what was finished is in the file: run it again with fewer"
            " processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def begin_process(threads: int) -> None:
    """Set up a process of its own: so many of torch's threads, and it ends with the one that started it."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: nobody would take what it measures."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
