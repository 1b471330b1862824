"""Kinds of checkpoint files by their first bytes, and their headers. Nothing here needs torch."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Literal

import safetensors

from depfuse.errors import CheckpointError
from depfuse.io.cards import Card, card_of
from depfuse.text import first_line, storable

Kind = Literal["safetensors", "pickle of arrays", "torch.save"]

# What torch.save wrote before it wrote zip archives: a pickle of this number comes first.
_TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:]


def kind_of(path: Path) -> Kind:
    """Detect the kind of a checkpoint file by its first 64 bytes, never by its name.

    Raises
    ------
    CheckpointError
        The file does not exist, cannot be read, is empty, or is no checkpoint.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file")
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
    if head.startswith((b"PK", b"\x80")):
        return "torch.save"
    raise CheckpointError(f"{path} is no checkpoint: neither safetensors nor a file of torch.save")


def read_card(path: Path) -> Card | None:
    """Read the card of a checkpoint without its tensors; None where it has none.

    Raises
    ------
    CheckpointError
        The file is no checkpoint (see `kind_of`), its header is damaged, or its card cannot be read.
    """
    if kind_of(path) != "safetensors":
        return None
    try:
        return card_of(path, _metadata(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None


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
