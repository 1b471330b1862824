"""Images that stay in their files until they are needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depfuse.data.images import is_grey_mode, opened, read_image
from depfuse.data.memory import too_much
from depfuse.errors import DataError, DepfuseWarning
from depfuse.text import counted

HELD_BYTES = 2**25  # of decoded images, that are held from the beginning


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of one shape, as an array (N, C, H, W) uint8 of which parts are decoded when they are asked for.

    Attributes
    ----------
    paths
        The files, as texts, which take little memory.
    shape
        (N, C, H, W).
    resized
        Whether they are brought to this shape as they are read; otherwise they have it.
    """

    paths: Sequence[str]
    shape: tuple[int, int, int, int]
    resized: bool

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the decoded images."""
        return torch.uint8

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take once they are decoded."""
        count, channels, height, width = self.shape
        return count * channels * height * width

    def take(self, index: slice | Tensor) -> ImageFiles:
        """Select files by number (n,), in that order, or a range of them; nothing is decoded."""
        if isinstance(index, slice):
            paths = self.paths[index]
        else:
            paths = [self.paths[number] for number in torch.arange(len(self))[index.cpu()].tolist()]
        return ImageFiles(paths, (len(paths), *self.shape[1:]), self.resized)

    def decoded(self) -> Tensor:
        """Decode all of them: (N, C, H, W) uint8.

        Raises
        ------
        DataError
            An image cannot be read, has another shape, or memory does not suffice.
        """
        if excess := too_much(self.nbytes):
            raise DataError(
                f"{counted(len(self), 'image')} as large as {self.paths[0]} need {excess}: give fewer or smaller ones"
            )
        images = torch.empty(self.shape, dtype=torch.uint8)
        for number, path in enumerate(self.paths):
            images[number] = self._decode(path)
        return images

    def __getitem__(self, index: Any) -> Tensor:
        """Decode what an index of the array selects."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int):
            return self.take(torch.tensor([first])).decoded()[(0, *rest)]
        chosen = self.take(first) if isinstance(first, (slice, Tensor)) else self
        return chosen.decoded()[(slice(None), *rest) if chosen is not self else index]

    def _decode(self, path: str) -> Tensor:
        _, channels, height, width = self.shape
        pixels = read_image(Path(path), grey=channels == 1, size=(height, width) if self.resized else None)
        if pixels.shape[:2] != (height, width):
            raise _several_sizes(path, pixels.shape[:2], self.paths[0], (height, width))
        return torch.from_numpy(pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def find_images(
    parts: Sequence[Sequence[str]], root: Path, size: tuple[int, int] | None
) -> list[ImageFiles] | list[Tensor]:
    """Read the headers of image files, part by part, and settle what shape all of them have.

    They are decoded at once where all of them take no more than `HELD_BYTES`, else when they are needed. They are grey
    where most are, with a `DepfuseWarning` where some are not, and RGB otherwise.

    Raises
    ------
    DataError
        An image cannot be read, or sizes differ and no `size` (height, width) is given.
    """
    colour: list[str] = []
    first: tuple[str, tuple[int, int]] | None = None
    for path in _all(parts):
        with opened(Path(path)) as image:
            shape = (image.height, image.width)
            if not is_grey_mode(image.mode):
                colour.append(path)
        first = first or (path, shape)
        if size is None and shape != first[1]:
            raise _several_sizes(path, shape, *first)
    count = sum(map(len, parts))
    grey = 2 * len(colour) < count
    if grey and colour:
        warnings.warn(
            f"{len(colour)} of {count} images in {root} are in colour, such as {os.path.relpath(colour[0], root)}: "
            "they are taken as grey, as most are",
            DepfuseWarning,
            stacklevel=2,
        )
    height, width = size or (first[1] if first else (1, 1))
    channels = 1 if grey else 3
    files = [ImageFiles(part, (len(part), channels, height, width), size is not None) for part in parts]
    return [part.decoded() for part in files] if sum(part.nbytes for part in files) <= HELD_BYTES else files


def _all(parts: Sequence[Sequence[str]]) -> Iterator[str]:
    for part in parts:
        yield from part


def _several_sizes(path: str, size: tuple[int, ...], other: str, wanted: tuple[int, ...]) -> DataError:
    return DataError(
        f"{path} is {size[1]} x {size[0]} pixels and {other} {wanted[1]} x {wanted[0]}: scale them all to one size, "
        "or give one with `size`, height and width, such as 224,224"
    )
