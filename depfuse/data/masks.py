"""Labels of pixels: masks beside images, matched by the names of their files.

A mask has one whole number for each pixel: the class, of a grey image or a place in its palette. 255 means no class
(`IGNORED`, which torch's losses leave out), unless there is nothing but 0 and 255, which are then classes 0 and 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from depfuse.data.images import opened
from depfuse.data.memory import too_much
from depfuse.data.preprocessing import box_of_shape
from depfuse.data.stored_images import HELD_BYTES
from depfuse.errors import DataError
from depfuse.tasks.label_kinds import IGNORED, NO_CLASS
from depfuse.text import counted

_MOST_CLASSES = 10_000
_MODES = ("1", "L", "P", "I", "I;16")
MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_seg", "_gt")  # of the name of a mask after its image's


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Masks of one shape, as an array (N, H, W) of which parts are decoded when they are asked for.

    Attributes
    ----------
    paths
        The files.
    shape
        (N, H, W).
    resized
        Whether they are brought to this shape, by the nearest pixel; otherwise they have it.
    binary
        Whether 255 is class 1.
    """

    paths: Sequence[str]
    shape: tuple[int, int, int]
    resized: bool
    binary: bool

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | Tensor) -> MaskFiles:
        """Select masks by number (n,), in that order, or a range of them; nothing is decoded."""
        numbers = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        paths = [self.paths[number] for number in numbers]
        return MaskFiles(paths, (len(paths), *self.shape[1:]), self.resized, self.binary)

    def decoded(self) -> Tensor:
        """Decode all of them: (N, H, W) int64.

        Raises
        ------
        DataError
            A mask cannot be read, or memory does not suffice.
        """
        needed = 8 * int(np.prod(self.shape))
        if excess := too_much(needed):
            raise DataError(
                f"{counted(len(self), 'mask')} as large as {self.paths[0]} need {excess}: give fewer or smaller ones"
            )
        labels = torch.empty(self.shape, dtype=torch.int64)
        for place, path in enumerate(self.paths):
            values = read_mask(path, self.shape[1:] if self.resized else None).astype(np.int64)
            labels[place] = torch.from_numpy(_labels(values, binary=self.binary))
        return labels


def read_mask(path: str, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """Read the numbers (H, W) of a mask, resized and cropped as its image is, by the nearest pixel.

    Raises
    ------
    DataError
        It cannot be read, or is in colour.
    """
    with opened(Path(path)) as image:
        if image.mode not in _MODES:
            raise DataError(
                f"{path} is in colour, and a mask has one whole number for each pixel: save the numbers of classes,"
                " grey or with a palette"
            )
        plain = Image.fromarray(np.asarray(image).astype(np.int32))
        if size is not None and (plain.height, plain.width) != size:
            top, left, height, width = box_of_shape(plain.height, plain.width, size)
            box = (left, top, left + width, top + height)
            plain = plain.resize((size[1], size[0]), Image.Resampling.NEAREST, box)
        return np.array(plain, np.int32)


def find_masks(images: Sequence[str], folder: str, below: Sequence[str], masks: str) -> list[str]:
    """Find the mask of every image: the same path in the other folder, with any ending.

    Parameters
    ----------
    images
        Files below `folder`.
    below
        Files below `masks`.

    Raises
    ------
    DataError
        An image has none.
    """
    known = {os.path.splitext(os.path.relpath(path, masks))[0]: path for path in below}
    found = []
    for image in images:
        name = os.path.splitext(os.path.relpath(image, folder))[0]
        mask = next((known[name + ending] for ending in MASK_ENDINGS if name + ending in known), None)
        if mask is None:
            raise DataError(f"{image} has no mask {os.path.join(masks, name)}.png: give one for each image")
        found.append(mask)
    return found


def load_masks(
    parts: Mapping[str, tuple[Sequence[str], Sequence[str]]], size: tuple[int, int] | None
) -> tuple[dict[str, MaskFiles | Tensor], tuple[str, ...]]:
    """Read all masks once, and settle how many classes there are; few of them are held.

    Parameters
    ----------
    parts
        For each part its images and their masks.
    size
        (height, width) that images are brought to; None keeps theirs.

    Raises
    ------
    DataError
        A mask has another size than its image, or a number that is no class.
    """
    values: set[int] = set()
    shape: tuple[int, int] = size or (1, 1)
    for images, masks in parts.values():
        for path, mask in zip(images, masks, strict=True):
            own = read_mask(mask)
            with opened(Path(path)) as image:
                if own.shape != (image.height, image.width):
                    raise DataError(
                        f"{mask} is {own.shape[1]} x {own.shape[0]} pixels and its image {path} {image.width} x"
                        f" {image.height}: give masks of the images' size"
                    )
            shape = size or (own.shape[0], own.shape[1])
            values |= set(np.unique(own).tolist())
    binary = values == {0, NO_CLASS}
    count = 2 if binary else max(values - {NO_CLASS}, default=0) + 1
    if min(values, default=0) < 0 or count > _MOST_CLASSES:
        wrong = min(values) if min(values) < 0 else count - 1
        raise DataError(f"a mask holds {wrong}, which is no class: the numbers in masks are 0, 1, 2, ...")
    files = {
        part: MaskFiles(masks, (len(masks), *shape), size is not None, binary) for part, (_, masks) in parts.items()
    }
    held = {part: own.decoded() if 8 * np.prod(own.shape) <= HELD_BYTES else own for part, own in files.items()}
    return held, tuple(map(str, range(count)))


def _labels(values: NDArray[np.int64], *, binary: bool) -> NDArray[np.int64]:
    return np.where(values == NO_CLASS, 1 if binary else IGNORED, values)
