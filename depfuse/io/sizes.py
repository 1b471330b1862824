"""Refuse files that would take far more memory than their size."""

from __future__ import annotations

from pathlib import Path

from depfuse.data.memory import GIBIBYTE
from depfuse.errors import CheckpointError

# Most memory of a file's content: TIMES its size plus BYTES. Tensors may share storage, and little is compressed.
TIMES, BYTES = 16, 2**28


def check_size(path: Path, needed: int, size: int | None = None) -> None:
    """Raise `CheckpointError` where a file would take `needed` bytes of memory, out of all proportion to its `size`."""
    size = path.stat().st_size if size is None else size
    if needed > TIMES * size + BYTES:
        raise CheckpointError(
            f"{path} would take {needed / GIBIBYTE:.1f} GiB of memory, and is a file of {size} bytes: it is damaged"
        )
