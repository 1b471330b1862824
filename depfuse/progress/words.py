"""How times and sentences of progress are written."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

wording: ContextVar[Callable[[str], str]] = ContextVar("depfuse_wording", default=str)
"""How sentences are worded for who reads them: the command line writes options for arguments."""


def clock(seconds: float) -> str:
    """Write seconds as `0:01:30`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def rounded(seconds: float) -> str:
    """Write seconds of a minute and more as people say them: `90 seconds`, `7 minutes`, `3 hours`."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{10 * round(seconds / 10)} seconds"
