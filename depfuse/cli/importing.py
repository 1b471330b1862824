"""Import of the modules that a command needs."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from depfuse.cli.console import complain


@contextmanager
def importing() -> Iterator[None]:
    """Import modules without the search for cyclic garbage; an interruption ends the process at once.

    The objects that modules make stay as long as the process does. Searched through while they are made, again while
    the command runs and once more at its end, they cost a second of processor time where torch is among them.
    """
    enabled, imported = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        with _ended_at_once():
            yield
    finally:
        if "torch" in sys.modules and not imported:
            gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """End the process where it is interrupted while modules are imported, when there is nothing to tidy up.

    Some libraries take the exception for that of a module that is missing, and go on without it.
    """

    def end(*_: object) -> None:
        complain("interrupted")
        os._exit(130)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
