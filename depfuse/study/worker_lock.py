"""Locks that tell which workers that share a folder are alive."""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import FileLock, Timeout


class WorkerLock:
    """A worker's lock in a folder: the worker is alive as long as it holds the lock.

    The system releases the lock of a process that was killed.

    Attributes
    ----------
    name
        Name by which other workers ask for it.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        self._lock = FileLock(self._path(self.name), timeout=0)
        self._lock.acquire()

    def alive(self, name: str) -> bool:
        """Tell whether a worker still runs."""
        if name == self.name:
            return True
        path = self._path(name)
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Release the lock and remove its file."""
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f".worker-{name}"
