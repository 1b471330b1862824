"""A data set is a few tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.data.floats import to_floats
from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import DataError

MOST_CLASSES = 100_000  # where there are fewer images than that


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """Take the images at `indices` (M,), in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class DataSet:
    """A training and a test split, the names of the classes and the pre-processing of the images."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images as network inputs."""
        channels, height, width = self.train.images.shape[1:]
        if self.preprocessing.size is not None:
            height, width = self.preprocessing.size
        return int(channels), int(height), int(width)

    def example(self, count: int = 1, device: torch.device | str = "cpu") -> Tensor:
        """Pre-process the first `count` training images: an example input (count, C, H, W)."""
        return to_floats(self.train.images[:count].to(device), self.preprocessing)


def checked_data_set(
    name: str, classes: tuple[str, ...] | None, train: Split, test: Split, preprocessing: Preprocessing
) -> DataSet:
    """Make a data set, or raise the `DataError` that says why these tensors are not one.

    Where `classes` is ``None``, the classes are named 0, 1, ... up to the largest label.
    """
    for part, split in (("training", train), ("test", test)):
        if len(split.images) == 0:
            raise DataError(f"{name}: there are no {part} images")
        if len(split.images) != len(split.labels):
            raise DataError(
                f"{name}: {len(split.images)} {part} images but {len(split.labels)} labels: there must be one per image"
            )
        if 0 in split.images.shape:
            raise DataError(f"{name}: {part} images of shape {tuple(split.images.shape[1:])} have no pixels")
        if int(split.labels.min()) < 0:
            raise DataError(f"{name}: {part} label {int(split.labels.min())} is out of range: labels start at 0")
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{tuple(train.images.shape[1:])} and test images {tuple(test.images.shape[1:])}"
        raise DataError(f"{name}: training images are {shapes}: they must have the same shape")
    largest = int(torch.cat([train.labels, test.labels]).max())
    if classes is None and largest >= max(MOST_CLASSES, len(train) + len(test)):
        raise DataError(f"{name}: label {largest} means more classes than any data set has: labels are 0, 1, 2, ...")
    if classes is None:
        classes = tuple(str(label) for label in range(largest + 1))
    for part, split in (("training", train), ("test", test)):
        if int(split.labels.max()) >= len(classes):
            raise DataError(
                f"{name}: {part} label {int(split.labels.max())} is out of range: "
                f"with {len(classes)} classes labels are 0 to {len(classes) - 1}"
            )
    preprocessing.check_channels(train.images.shape[1])
    preprocessing.check_size(*train.images.shape[2:])
    return DataSet(name, classes, train, test, preprocessing)
