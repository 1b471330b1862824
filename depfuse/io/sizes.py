"""Refuse files that would take far more memory than their size."""

from __future__ import annotations

from pathlib import Path

from depfuse.data.memory import GIBIBYTE
from depfuse.errors import CheckpointError

# Most memory of a file's content: TIMES its size plus BYTES. Tensors may share storage, and little is compressed.
TIMES, BYTES = 16, 2**28


def check_size(path: Path, needed: int, own: int | None = None) -> None:
    """Raise `CheckpointError` where a file would take `needed` bytes of memory, out of all proportion to its `own`."""
    own = path.stat().st_size if own is None else own
    if needed > TIMES * own + BYTES:
        raise CheckpointError(
            f"{path} would take {needed / GIBIBYTE:.1f} GiB of memory, and is a file of {own} bytes: it is damaged"
        )
