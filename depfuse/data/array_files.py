"""Arrays in .npy and .npz files: their headers, and images in them that are read in pieces."""

from __future__ import annotations

import math
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depfuse.data.memory import too_much
from depfuse.data.stored_images import StoredImages
from depfuse.errors import DataError
from depfuse.text import first_line

FORMS = "give a .npz or .npy file, a folder of images, or a list of their files (.txt, .csv)"
MAGIC = b"\x93NUMPY"
_PIECE = 2**24  # bytes that are read at once
_LOCAL_HEADER = 30  # bytes of a zip archive before the name of an entry, which the header of an array follows
_WHITE_OF_16_BITS = 257  # times that of 8


@dataclass(frozen=True)
class ArrayHeader:
    """An array in a file, before it is read.

    Attributes
    ----------
    path
        The file, or archive.
    member
        Its entry in the archive; none of a .npy file.
    shape, dtype
        As it is stored.
    offset
        Bytes of the file before its numbers; None where they are compressed, or in Fortran's order.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None

    @property
    def where(self) -> str:
        """File and array, for messages."""
        return f"{self.path}: {self.member.removesuffix('.npy')}" if self.member else str(self.path)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def may_be_images(self) -> bool:
        """Whether shape and type are those of images."""
        return len(self.shape) in (3, 4) and self.dtype.kind in "uifb"

    @property
    def may_be_labels(self) -> bool:
        """Whether shape and type are those of labels."""
        return len(self.shape) in (1, 2) and self.dtype.kind in "uifUSb"

    def read(self) -> NDArray[Any]:
        """Read all of it; raises what NumPy does where it is damaged."""
        if not self.member:
            return np.asarray(np.load(self.path, allow_pickle=False))
        with np.load(self.path, allow_pickle=False) as arrays:
            return np.asarray(arrays[self.member.removesuffix(".npy")])

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Read it in pieces of its first axis, in order."""
        rows = max(1, _PIECE * self.shape[0] // max(1, self.nbytes))
        if self.offset is not None:
            for start in range(0, self.shape[0], rows):
                yield self.rows(np.arange(start, min(start + rows, self.shape[0])))
            return
        if not self.member:
            yield self.read()
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            _, fortran, _ = _parsed(file)
            if fortran:
                yield self.read()
                return
            for start in range(0, self.shape[0], rows):
                shape = (min(rows, self.shape[0] - start), *self.shape[1:])
                content = file.read(math.prod(shape) * self.dtype.itemsize)
                yield np.frombuffer(content, self.dtype).reshape(shape)

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Read entries of the first axis by number (n,); only where there is an `offset`.

        Not mapped into memory, which would hold whatever has been read until it is short.

        Raises
        ------
        DataError
            The file is no longer what it was.
        """
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        content = found.reshape(len(numbers), -1).view(np.uint8) if found.size else found
        size = content.shape[1] if found.size else 0
        try:
            with self.path.open("rb", buffering=0) as file:
                for place, number in enumerate(numbers.tolist() if size else ()):
                    file.seek((self.offset or 0) + number * size)
                    if file.readinto(content[place]) != size:
                        raise EOFError("it is cut off")
        except (OSError, EOFError) as error:
            raise DataError(f"{self.where} can no longer be read: {first_line(error)}") from None
        return found


def header_of_npy(path: Path) -> ArrayHeader:
    """Read the header of a .npy file; raises `DataError` where it is cut off."""
    with path.open("rb") as file:
        shape, fortran, dtype = _parsed(file)
        header = ArrayHeader(path, "", shape, dtype, None if fortran else file.tell())
        if not dtype.hasobject and file.tell() + header.nbytes > path.stat().st_size:
            raise DataError(f"{path} cannot be read as a .npy: it is said to have shape {shape}, but is cut off")
    return header


def headers_of_npz(path: Path) -> dict[str, ArrayHeader]:
    """Read the headers of all arrays of an archive; raises `DataError` where one is cut off, before any is read."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} {_no_archive(path)}")
    headers = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as plain:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as member:
                shape, fortran, dtype = _parsed(member)
                before = member.tell()
            offset = None
            if entry.compress_type == zipfile.ZIP_STORED and not fortran:
                plain.seek(entry.header_offset)
                local = plain.read(_LOCAL_HEADER)
                extent = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
                offset = entry.header_offset + _LOCAL_HEADER + extent + before
            headers[name] = ArrayHeader(path, entry.filename, shape, dtype, offset)
            if not dtype.hasobject and before + headers[name].nbytes > entry.file_size:
                raise DataError(
                    f"{path} cannot be read as a .npz: {name} is said to have shape {shape}, but is cut off"
                )
    if not headers:
        with zipfile.ZipFile(path) as archive:
            of_torch = any(entry.endswith("data.pkl") for entry in archive.namelist())
        raise DataError(
            f"{path} is a file of torch.save, and data are arrays: write them by numpy.savez(path, x=..., y=...)"
            if of_torch
            else f"{path} is an archive without arrays: unpack it, and give its folder or a list of its files"
        )
    return headers


def _no_archive(path: Path) -> str:
    """Say what is wrong with a file that is no archive of arrays."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            return "cannot be read as a .npz: it is cut off, its archive has no end"
    if tarfile.is_tarfile(path):
        return "is an archive of files: unpack it, and give its folder or a list of its files"
    if path.suffix.lower() == ".npz":
        return "cannot be read as a .npz: it is no archive of arrays"
    return f"is no data that can be read: {FORMS}"


def _parsed(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, whether it is in Fortran's order, and type."""
    old = np.lib.format.read_magic(member) == (1, 0)
    parsed = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(member)
    shape, fortran, dtype = parsed
    return tuple(shape), bool(fortran), dtype


@dataclass(frozen=True, eq=False)
class ArrayImages(StoredImages):
    """Images in an array of a file that is not compressed.

    Attributes
    ----------
    header
        The array.
    shape
        (N, C, H, W) of the images, N that of `numbers`.
    numbers
        (N,) int64, which of the array's images these are.
    """

    header: ArrayHeader
    shape: tuple[int, int, int, int]
    numbers: NDArray[np.int64]

    @property
    def example(self) -> str:
        """File and array."""
        return f"those of {self.header.where}"

    def take(self, index: slice | Tensor) -> ArrayImages:
        """Select images by number (n,), in that order, or a range of them; nothing is read."""
        numbers = self.numbers[index if isinstance(index, slice) else index.cpu().numpy()]
        return replace(self, numbers=numbers, shape=(len(numbers), *self.shape[1:]))

    def fill(self, images: Tensor) -> None:
        """Read all images into a tensor; see `StoredImages.fill`."""
        rows = max(1, _PIECE * self.header.shape[0] // max(1, self.header.nbytes))
        for start in range(0, len(self), rows):
            piece = _in_layout(self.header.rows(self.numbers[start : start + rows]), self.header)
            images.numpy()[start : start + rows] = _eight_bits(piece, self.header.where)


def read_images(header: ArrayHeader) -> Tensor | StoredImages:
    """Read images in any of the accepted layouts and types: (N, C, H, W) uint8.

    Many of them, in an array that is not compressed, are read when they are needed, see `StoredImages.held`.

    Raises
    ------
    DataError
        Layout or type is another, floats are not all in [0, 1], or memory does not suffice.
    """
    shape = _shape_of_images(header)
    if header.offset is not None:
        stored = ArrayImages(header, shape, np.arange(shape[0]))
        held = stored.held()
        if held is stored and header.dtype.kind == "f":
            for piece in header.pieces():
                _check_floats(piece, header.where)
        return held
    if excess := too_much(math.prod(shape) + min(header.nbytes, 2 * _PIECE)):
        raise DataError(f"{header.where} needs {excess}: give fewer images, or save them without compression")
    images = torch.empty(shape, dtype=torch.uint8)
    start = 0
    for piece in header.pieces():
        images.numpy()[start : start + len(piece)] = _eight_bits(_in_layout(piece, header), header.where)
        start += len(piece)
    return images


def _shape_of_images(header: ArrayHeader) -> tuple[int, int, int, int]:
    shape = header.shape
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4:
        raise DataError(f"{header.where} has shape {shape}, which is one image: give several, (N, H, W, C)")
    if len(shape) == 3:
        return shape[0], 1, shape[1], shape[2]
    if len(shape) != 4:
        raise DataError(f"{header.where} has shape {shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    return (
        (shape[0], shape[3], shape[1], shape[2]) if _channels_last(shape) else (shape[0], shape[1], shape[2], shape[3])
    )


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in (1, 3, 4) and shape[3] < shape[1]


def _in_layout(piece: NDArray[Any], header: ArrayHeader) -> NDArray[Any]:
    """View some of an array's images as (n, C, H, W)."""
    if piece.ndim == 3:
        return piece[:, None]
    return piece.transpose(0, 3, 1, 2) if _channels_last(header.shape) else piece


def _eight_bits(piece: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Convert some images to uint8."""
    if piece.dtype.kind == "f":
        _check_floats(piece, where)
        piece = np.rint(piece * 255).astype(np.uint8)
    elif piece.dtype.kind == "b":
        piece = piece.astype(np.uint8) * 255
    elif piece.dtype.kind == "u" and piece.dtype.itemsize == 2:
        piece = np.rint(piece / _WHITE_OF_16_BITS).astype(np.uint8)
    elif piece.dtype != np.uint8:
        raise DataError(f"{where} is {piece.dtype}: images are uint8, uint16, or floats in [0, 1]")
    return piece


def _check_floats(piece: NDArray[Any], where: str) -> None:
    if piece.size and not (np.isfinite(piece).all() and piece.min() >= 0 and piece.max() <= 1):
        raise DataError(f"{where} holds floats outside [0, 1]: give uint8 images, or scale them to [0, 1]")
