"""Images that stay in their files until they are needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depfuse.data.images import is_grey_mode, opened, read_image
from depfuse.data.stored_images import StoredImages
from depfuse.data.unread import Unread
from depfuse.errors import DataError, DepfuseWarning


@dataclass(frozen=True, eq=False)
class ImageFiles(StoredImages):
    """Image files of one shape.

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

    @property
    def example(self) -> str:
        """The first file."""
        return self.paths[0]

    def take(self, index: slice | Tensor) -> ImageFiles:
        """Select files by number (n,), in that order, or a range of them; nothing is decoded."""
        if isinstance(index, slice):
            paths = self.paths[index]
        else:
            paths = [self.paths[number] for number in torch.arange(len(self))[index.cpu()].tolist()]
        return ImageFiles(paths, (len(paths), *self.shape[1:]), self.resized)

    def fill(self, images: Tensor) -> None:
        """Decode all files into a tensor; see `StoredImages.fill`."""
        for number, path in enumerate(self.paths):
            images[number] = self._decode(path)

    def _decode(self, path: str) -> Tensor:
        _, channels, height, width = self.shape
        pixels = read_image(Path(path), grey=channels == 1, size=(height, width) if self.resized else None)
        if pixels.shape[:2] != (height, width):
            raise _several_sizes(path, pixels.shape[:2], self.paths[0], (height, width))
        return torch.from_numpy(pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def find_images(
    parts: Sequence[Sequence[str]], root: Path, size: tuple[int, int] | None, colour: bool = False
) -> list[StoredImages | Tensor]:
    """Read the headers of image files, part by part, and settle what shape all of them have.

    Few are decoded at once, see `StoredImages.held`. They are grey where most are, with a `DepfuseWarning` where some
    are not, and RGB otherwise, or where they shall be in `colour`. What is not read of them is said (`Unread`).

    Raises
    ------
    DataError
        An image cannot be read, or sizes differ and no `size` (height, width) is given.
    """
    coloured: list[str] = []
    unread = Unread()
    first: tuple[str, tuple[int, int]] | None = None
    for path in _all(parts):
        with opened(Path(path)) as image:
            shape = (image.height, image.width)
            if not is_grey_mode(image.mode):
                coloured.append(path)
            unread.note(path, image)
        first = first or (path, shape)
        if size is None and shape != first[1]:
            raise _several_sizes(path, shape, *first)
    count = sum(map(len, parts))
    grey = not colour and 2 * len(coloured) < count
    if grey and coloured:
        warnings.warn(
            f"{len(coloured)} of {count} images in {root} are in colour, such as {os.path.relpath(coloured[0], root)}: "
            "they are taken as grey, as most are",
            DepfuseWarning,
            stacklevel=2,
        )
    unread.say(count, root)
    height, width = size or (first[1] if first else (1, 1))
    channels = 1 if grey else 3
    files = [ImageFiles(part, (len(part), channels, height, width), size is not None) for part in parts]
    return [part.held() for part in files]


def _all(parts: Sequence[Sequence[str]]) -> Iterator[str]:
    for part in parts:
        yield from part


def _several_sizes(path: str, size: tuple[int, ...], other: str, wanted: tuple[int, ...]) -> DataError:
    return DataError(
        f"{path} is {size[1]} x {size[0]} pixels and {other} {wanted[1]} x {wanted[0]}: scale them all to one size, "
        "or give one with `size`, height and width, such as 224,224"
    )
