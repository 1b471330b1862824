"""Kinds of checkpoint files by their first bytes, and their headers. Nothing here needs torch."""

from __future__ import annotations

import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import safetensors

from depfuse.errors import CheckpointError
from depfuse.io.cards import Card, card_of
from depfuse.io.folders import weight_files
from depfuse.io.hub_folders import hub_card
from depfuse.text import first_line, storable

Kind = Literal["safetensors", "pickle of arrays", "npz", "torch.save"]

# First bytes of other files that people have -> what they are, and what to do.
_SAVE = "save its state_dict() where it was made, or give the weights that it was made from"
_OTHERS = {
    b"\x89HDF": f"is an HDF5 file (Keras and others): {_SAVE}",
    b"GGUF": f"is a GGUF file, whose weights are mostly quantised: {_SAVE}",
    b"\x1f\x8b": "is compressed (gzip): unpack it first",
    b"BZh": "is compressed (bzip2): unpack it first",
    b"\xfd7zXZ": "is compressed (xz): unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"\x93NUMPY": "is one array (.npy), not the weights of a network by name: save them as .npz or safetensors",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`",
    b"<!DOCTYPE": "is a web page: the download gave no file, but a page about it",
    b"<!doctype": "is a web page: the download gave no file, but a page about it",
    b"<html": "is a web page: the download gave no file, but a page about it",
}
_BY_ENDING = {
    ".onnx": f"is an ONNX program, whose names and layers are its exporter's: {_SAVE}",
    ".tflite": f"is a TensorFlow Lite program: {_SAVE}",
    ".pb": f"is a TensorFlow program: {_SAVE}",
    ".engine": f"is a TensorRT program: {_SAVE}",
    ".mlmodel": f"is a Core ML program: {_SAVE}",
    ".msgpack": f"is a file of Flax: {_SAVE}, as safetensors with the names and layouts of torch",
}

# Names in the archives of torch.export, old and new.
_OF_EXPORTS = ("serialized_exported_program.json", "archive_format", "models/model.json")

# What torch.save wrote before it wrote zip archives: a pickle of this number comes first.
_TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:]


def kind_of(path: Path) -> Kind:
    """Detect the kind of a checkpoint file by its first 64 bytes and the names in a zip archive, never by its name.

    Raises
    ------
    CheckpointError
        The file does not exist, cannot be read, is empty, or is no checkpoint.
    """
    if path.exists() and not path.is_file():  # opening a pipe that nobody writes to would block
        raise CheckpointError(f"{path} is a pipe or device, not a checkpoint file: save what it gives to a file first")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"{path} is empty")
    # Safetensors starts with the length of its header (8 bytes, the lowest first) and the header, so its first bytes
    # may by chance be those of a pickle or a zip archive; theirs give no such length.
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return "safetensors"
    if head.startswith(b"\x80") and _TORCH_MAGIC not in head:
        return "pickle of arrays"
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if head.startswith(b"\x80"):
        return "torch.save"
    for start, reason in _OTHERS.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{path} {reason}")
    if path.suffix.lower() in _BY_ENDING:
        raise CheckpointError(f"{path} {_BY_ENDING[path.suffix.lower()]}")
    if tarfile.is_tarfile(path):
        raise CheckpointError(
            f"{path} is a tar archive: unpack it first, or, where torch before 0.1.10 wrote it, load it there and save"
            " it anew"
        )
    raise CheckpointError(f"{path} is no checkpoint: neither safetensors nor a file of torch.save")


def read_card(path: Path) -> Card | None:
    """Read the card of a checkpoint without its tensors, or what its folder says; None where nothing does.

    Raises
    ------
    CheckpointError
        The file is no checkpoint (see `kind_of`), its header is damaged, or its card cannot be read.
    """
    files = weight_files(path)
    kinds = [kind_of(file) for file in files]
    card = _own_card(files[0]) if kinds == ["safetensors"] else None
    return card or hub_card(path)


def _own_card(path: Path) -> Card | None:
    try:
        return card_of(path, _metadata(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None


def _kind_of_archive(path: Path) -> Kind:
    """Tell archives of torch, of NumPy and others apart by the names in them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "torch.save"  # whose reader says what is broken
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        return "torch.save"
    if any(
        name.endswith(("serialized_exported_program.json", "archive_format", "models/model.json")) for name in names
    ):
        raise CheckpointError(f"{path} is an exported program (torch.export), read by running it: {_SAVE}")
    raise CheckpointError(f"{path} is a zip archive without weights of torch at its top: unpack it first")


def metadata_of(content: bytes) -> dict[str, str]:
    """Read the metadata out of the bytes of a safetensors file."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}


def _metadata(path: Path) -> dict[str, str]:
    if storable(str(path)) == str(path):
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    with path.open("rb") as file:  # the library opens no file whose name is no Unicode
        length = file.read(8)
        return metadata_of(length + file.read(int.from_bytes(length, "little")))
