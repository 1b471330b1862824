"""Which workers are alive of those that share a folder."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path

_WAYS = fcntl.LOCK_EX | fcntl.LOCK_NB


class Roll:
    """A worker's entry among those of a folder: it is alive as long as the lock of its file is held.

    The system lets go of the lock of a process that was killed.

    Attributes
    ----------
    name
        By which others can ask for it.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        self._file = self._path(self.name).open("w")
        fcntl.flock(self._file, _WAYS)

    def alive(self, name: str) -> bool:
        """Whether a worker still runs."""
        if name == self.name:
            return True
        try:
            with self._path(name).open("r+") as file:
                fcntl.flock(file, _WAYS)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        self._path(name).unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Strike the worker off."""
        self._path(self.name).unlink(missing_ok=True)
        self._file.close()

    def _path(self, name: str) -> Path:
        return self._folder / f".worker-{name}"
