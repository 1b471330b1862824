"""Read what torch.save and torch.jit.save write, whatever classes it names, without running code.

Both formats of torch.save are a pickle that refers to storages of numbers: in a zip archive, where each is a file of
its own, or (before torch 1.6) behind the pickle.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.inert import read_inert
from depfuse.io.sizes import check_size
from depfuse.text import first_line

_HEADER_PICKLES = 3  # a magic number, the protocol, and the machine


def read_archive(path: Path) -> Any:
    """Read a file of torch.save or torch.jit.save; what is no tensor or plain value becomes a record.

    Raises
    ------
    CheckpointError
        The file is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(path, archive)
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ValueError("its zip archive has no end")
            file.seek(0)
            return _read_legacy(path, file)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    check_size(path, sum(entry.file_size for entry in archive.infolist()))
    names = archive.namelist()
    (main,) = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    folder = main.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and archive.read(order) == b"big":
        raise CheckpointError(f"{path} was written on a big-endian machine: load it and save it anew on this one")
    made: dict[str, Tensor] = {}

    def storage(identity: tuple[Any, ...]) -> Tensor:
        dtype, key, count = _described(identity)
        if key not in made:
            content = bytearray(archive.read(f"{folder}data/{key}"))
            if len(content) < count * dtype.itemsize:
                raise ValueError("a tensor has fewer numbers than it says")
            made[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return made[key][: count * dtype.itemsize].view(dtype)

    size = path.stat().st_size
    return read_inert(io.BytesIO(archive.read(main)), path, size, storage)[0]


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    size = path.stat().st_size
    left = size
    made: dict[str, Tensor] = {}

    def storage(identity: tuple[Any, ...]) -> Any:
        nonlocal left
        if identity[0] == "module":  # a class, with its source code beside it
            return identity[1]
        dtype, key, count = _described(identity)
        if key not in made:
            left -= count * dtype.itemsize
            if left < 0:
                raise CheckpointError(f"{path} is damaged or cut off: its tensors are larger than the file")
            made[key] = torch.empty(count, dtype=dtype)
        view = identity[5] if len(identity) > 5 else None
        return made[key] if view is None else made[key][view[1] : view[1] + view[2]]

    for _ in range(_HEADER_PICKLES):
        read_inert(file, path, size)
    loaded, _ = read_inert(file, path, size, storage)
    keys, _ = read_inert(file, path, size)
    for key in keys:
        _fill(made[key], file)
    return loaded


def _fill(storage: Tensor, file: BinaryIO) -> None:
    """Read the numbers of a storage: how many, and their bytes."""
    if int.from_bytes(file.read(8), "little") != len(storage):
        raise ValueError("a tensor has fewer numbers than it says")
    content = bytearray(file.read(storage.nbytes))
    if len(content) < storage.nbytes:
        raise ValueError("it ends within a tensor")
    if content:
        storage.copy_(torch.frombuffer(content, dtype=storage.dtype))


def _described(identity: tuple[Any, ...]) -> tuple[torch.dtype, str, int]:
    """Read type, name and length out of the identity of a storage."""
    kind, key, count = identity[1], identity[2], identity[4]
    dtype = getattr(kind, "dtype", None)
    if identity[0] != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0:
        raise ValueError("it has a storage of an unknown kind")
    return dtype, str(key), count
