"""What is measured in a process of its own: within limits of time and memory, and with what is known if it ends early.

    found = apart(figures, cell, seconds=300.0)

`figures` is a generator function of a module. What it yields is received at once, and is there even if the process is
killed. A forked process has loaded what this one has; it is safe only where nothing was computed with several threads.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from depfuse.errors import DepfuseError
from experiments.lib.processes import CellError, begin_process

GIB = 2**30
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
Figures = Callable[..., Iterable[Mapping[str, Any]]]


def apart(
    figures: Figures, *arguments: Any, seconds: float = math.inf, gibibytes: float = math.inf, fork: bool = False
) -> dict[str, Any]:
    """Collect what a generator yields in a process of its own, and `ended`: how that process ended.

    `ended` is `refused` after a `DepfuseError`, `timeout` or `memory` at a limit, `error` where it failed in another
    way, and empty where all is well; where it is not, `refused` says why. `peak_mib` is the memory that was seen.
    """
    forked = fork and sys.platform == "linux"
    context: Any = multiprocessing.get_context("fork" if forked else "spawn")
    inbox, outbox = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(outbox, torch.get_num_threads(), figures, arguments), daemon=True)
    process.start()
    outbox.close()
    found: dict[str, Any] = {}
    limit: dict[str, Any] = {}
    started, peak = time.monotonic(), 0
    try:
        while process.is_alive() and not limit:
            peak = max(peak, resident(process.pid))
            process.join(0.05)
            _receive(inbox, found)
            if time.monotonic() - started > seconds:
                limit = {"ended": "timeout", "refused": f"unfinished after {seconds:g} s"}
            elif peak > gibibytes * GIB:
                limit = {"ended": "memory", "refused": f"took more than {gibibytes:.1f} GiB"}
    finally:
        process.kill()
        process.join()
    _receive(inbox, found)
    if "ended" not in found and not limit:  # killed by the system, most likely for its memory
        killed = "memory" if process.exitcode == -9 else "error"
        limit = {"ended": killed, "refused": f"ended with exit code {process.exitcode}"}
    return {"peak_mib": peak // 2**20, **found, **limit}


def whole(found: dict[str, Any]) -> dict[str, Any]:
    """Return what `apart` collected; raise `CellError` where its process did not end well."""
    if found["ended"]:
        raise CellError(found["refused"])
    return found


def _receive(inbox: Connection, found: dict[str, Any]) -> None:
    with suppress(EOFError, OSError):
        while inbox.poll():
            found.update(inbox.recv())


def resident(pid: int) -> int:
    """Read the memory of a process in bytes; 0 where it is gone, or there is no /proc."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def _send(outbox: Connection, threads: int, figures: Figures, arguments: tuple[Any, ...]) -> None:
    begin_process(threads)
    sys.stdout = sys.stderr  # what is printed here is no part of the tables
    try:
        for found in figures(*arguments):
            outbox.send(dict(found))
        outbox.send({"ended": ""})
    except DepfuseError as error:
        outbox.send({"ended": "refused", "refused": str(error)})
    except MemoryError:
        outbox.send({"ended": "memory", "refused": "raises MemoryError"})
    except Exception as error:  # the other cells go on
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = (str(error).strip().splitlines() or ["no message"])[0]
        place = f"{Path(last.filename).name}:{last.lineno}"
        outbox.send({"ended": "error", "refused": f"raises {type(error).__name__} at {place}: {line}"})
