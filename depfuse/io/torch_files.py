"""Read what torch.save writes, in any of its formats, without running code."""

from __future__ import annotations

import contextlib
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depfuse.errors import CheckpointError
from depfuse.io.sizes import check_size
from depfuse.io.torch_archives import read_archive


def load_torch(path: Path) -> Any:
    """Read what torch.save or torch.jit.save wrote, without running code: torch reads what is plain, `inert` the rest.

    Raises
    ------
    CheckpointError
        The file is damaged.
    """
    if tarfile.is_tarfile(path):  # the oldest format, which torch before 2.6 unpickles whatever is in it
        raise CheckpointError(f"{path} is a tar archive, as torch before 0.1.10 wrote: load it there and save it anew")
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:  # torch says what is broken
            check_size(path, sum(entry.file_size for entry in archive.infolist()))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # it holds more than tensors and plain values, is a TorchScript program, or is damaged
        return read_archive(path)


def _harmless() -> list[Any]:
    """List the classes of the numpy numbers that many training scripts save beside the weights."""
    scalar = np.float64(0).__reduce__()[0]  # its home is private and moved with numpy 2
    kinds = {type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")}
    return [scalar, np.dtype, *kinds]
