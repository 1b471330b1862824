"""What work is called, and what its steps are a part of."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_part: ContextVar[str] = ContextVar("depfuse_part", default="")
_name: ContextVar[str] = ContextVar("depfuse_name", default="")


def within_part(description: str) -> str:
    """Name a step, after what it is a part of."""
    return f"{_part.get()}: {description}" if _part.get() else description


def name(otherwise: str) -> str:
    """Return what the current work is called where it is one of several of a kind."""
    return _name.get() or otherwise


@contextmanager
def named(what: str) -> Generator[None, None, None]:
    """Say what the work within the block is called."""
    before = _name.set(what)
    try:
        yield
    finally:
        _name.reset(before)


@contextmanager
def part(what: str) -> Generator[None, None, None]:
    """Say before each step within the block what it is a part of."""
    before = _part.set(what)
    try:
        yield
    finally:
        _part.reset(before)
