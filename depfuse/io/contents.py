"""Read all that a checkpoint holds, in any of its formats, without running code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.cards import Card, card_of
from depfuse.io.folders import weight_files
from depfuse.io.headers import Kind, kind_of, metadata_of
from depfuse.io.hub_folders import hub_card
from depfuse.io.paddle_and_jittor import Layout, read_pickle
from depfuse.io.sizes import check_size
from depfuse.io.torch_files import load_torch
from depfuse.models.origin import shown
from depfuse.text import first_line, storable


@dataclass(frozen=True)
class Contents:
    """All that a checkpoint holds.

    Attributes
    ----------
    files
        Where its weights are; several if it is in parts.
    kind
        Format of the files.
    loaded
        Dicts, lists, tensors, plain values and records.
    card
        Its card, if it has one; of a folder of transformers or timm, what its configuration says.
    layout
        Whether the weights of linear layers are (outputs, inputs) as in torch; see `read_pickle`.
    """

    files: tuple[Path, ...]
    kind: Kind
    loaded: Any
    card: Card | None = None
    layout: Layout = "torch"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


def read_contents(path: Path) -> Contents:
    """Read a checkpoint: a file, a folder, or an index of parts.

    Raises
    ------
    CheckpointError
        It does not exist, is cut off or damaged, or is no checkpoint.
    """
    files = weight_files(path)
    contents = _read(files[0]) if len(files) == 1 else _joined(path, files)
    return contents if contents.card is not None else replace(contents, card=hub_card(path))


def _joined(path: Path, files: tuple[Path, ...]) -> Contents:
    parts = [_read(file) for file in files]
    loaded: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part.loaded, Mapping):
            raise CheckpointError(f"{part.files[0]} holds a {type(part.loaded).__name__}, not a part of the weights")
        if twice := loaded.keys() & part.loaded.keys():
            raise CheckpointError(f"{path}: two of its parts hold {shown(str(min(map(str, twice))))}")
        loaded |= part.loaded
    return Contents(files, parts[0].kind, loaded, None, parts[0].layout)


def _read(path: Path) -> Contents:
    kind = kind_of(path)
    if kind == "safetensors":
        return _load_safetensors(path)
    if kind == "pickle of arrays":
        loaded, layout = read_pickle(path)
        return Contents((path,), kind, loaded, None, layout)
    if kind == "npz":
        return Contents((path,), kind, _load_arrays(path))
    return Contents((path,), kind, load_torch(path))


def _load_safetensors(path: Path) -> Contents:
    try:
        state, metadata = _read_safetensors(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None
    return Contents((path,), "safetensors", state, card_of(path, metadata))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if storable(str(path)) == str(path):
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    content = path.read_bytes()  # the library cannot open a file whose name is not Unicode
    return safetensors.torch.load(content), metadata_of(content)


def _load_arrays(path: Path) -> dict[str, Tensor]:
    """Read the arrays of numbers in a .npz by name; others are left out."""
    arrays_by_name = {}
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(entry.file_size for entry in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                values = arrays[name]
                if values.dtype.kind in "fiub":
                    arrays_by_name[name] = torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C"))
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read as arrays of numbers: {first_line(error)}") from None
    return arrays_by_name
