"""Handling of interruptions while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from depfuse.cli.console import complain


@contextmanager
def ended_at_once() -> Iterator[None]:
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
