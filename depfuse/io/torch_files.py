"""Read what torch.save writes, in any of its formats, without running code."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depfuse.errors import CheckpointError
from depfuse.io.sizes import check_size
from depfuse.text import first_line

_LEGACY_PICKLES = 4  # a magic number, the protocol, the machine, and what was saved


def load_torch(path: Path) -> Any:
    """Read what torch.save wrote, without running code.

    Raises
    ------
    CheckpointError
        The file is damaged, or holds more than tensors and plain values.
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
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error) or _is_cut_off(path):
            raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None
        found = re.search(r"(?:GLOBAL|function|class|instantiate) ([\w.]+\.[\w.]+)", str(error))
        needs = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path} holds more than tensors and plain values{needs}, "
            f"and reading it could run code: "
            f"save the state dict alone, torch.save(model.state_dict(), path), where it was made"
        ) from None
    except Exception as error:  # torch has no one exception for a broken file
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path} is a TorchScript program: save its state_dict() instead") from None
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None


def _is_cut_off(path: Path) -> bool:
    """Tell whether a file of the format before zip archives ends within its pickles; nothing is called.

    A name that is cut off there looks like another name.
    """
    if zipfile.is_zipfile(path):
        return False
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                for _ in pickletools.genops(file):
                    pass
        except ValueError:
            return True
    return False


def _harmless() -> list[Any]:
    """List the classes of the numpy numbers that many training scripts save beside the weights."""
    scalar = np.float64(0).__reduce__()[0]  # its home is private and moved with numpy 2
    kinds = {type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")}
    return [scalar, np.dtype, *kinds]
