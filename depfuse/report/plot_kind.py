"""The kinds of files that plots are written as, known by their endings. Nothing here needs a library to draw."""

from __future__ import annotations

from pathlib import Path

from depfuse.errors import ReportError

KINDS = ("png", "pdf", "svg")


def plot_kind(path: Path) -> str:
    """Return png, pdf or svg from the ending of the file's name; raise `ReportError` for any other."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ReportError(f"{path}: a plot's name must end in .png, .pdf or .svg")
    return kind
