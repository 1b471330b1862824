"""Read pickles of arrays, as PaddlePaddle and Jittor save networks, without either and without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from depfuse.io.inert import read_inert

Layout = Literal["torch", "paddle", "paddle?"]

_PADDLE_MARK = "StructuredToParameterName@@"
_PADDLE_NAMES = {"_mean": "running_mean", "_variance": "running_var"}


def read_pickle(path: Path) -> tuple[Any, Layout]:
    """Read a pickle of arrays; arrays come as tensors, and pickled tensors as they are.

    Returns
    -------
    loaded
        What was pickled: dicts and lists of tensors, plain values and records.
    layout
        `paddle` where the weights of linear layers are (inputs, outputs) as in PaddlePaddle; `paddle?` where the file
        holds NumPy arrays without PaddlePaddle's mark; `torch` where it holds tensors.

    Raises
    ------
    CheckpointError
        The file is damaged.
    """
    with path.open("rb") as file:
        loaded, has_arrays = read_inert(file, path, path.stat().st_size)
    layout: Layout = "paddle?" if has_arrays else "torch"
    if isinstance(loaded, Mapping) and _PADDLE_MARK in loaded:
        layout = "paddle"
    return loaded, layout


def torch_name(key: str, layout: Layout) -> str:
    """Rename a BatchNorm's statistics as torch names them."""
    if layout == "torch":
        return key
    place, dot, last = key.rpartition(".")
    return f"{place}{dot}{_PADDLE_NAMES.get(last, last)}"
