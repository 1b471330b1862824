"""A data set is a few tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depfuse.data.floats import to_floats
from depfuse.data.inputs import Index, count_samples, take_samples
from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import DataError
from depfuse.networks.calling import Call

MOST_CLASSES = 100_000  # where there are fewer images than that


@dataclass(frozen=True)
class Split:
    """Inputs and their labels.

    Attributes
    ----------
    images
        Images (N, C, H, W) uint8; or whatever else networks take, ready for them: a tensor (N, ...), several in a
        structure, or `Ragged`.
    labels
        (N,) int64; None where they are not known.
    call
        How a network is run on a batch of them, where it is not by the inputs alone; batches are `Called` then.
    """

    images: Any
    labels: Tensor | None = None
    call: Call | None = None

    def __len__(self) -> int:
        return count_samples(self.images)

    @property
    def required_labels(self) -> Tensor:
        """The labels (N,); raises `DataError` where there are none."""
        if self.labels is None:
            raise DataError("labels are needed here, and these data have none: give data with labels")
        return self.labels

    def take(self, index: Index) -> Split:
        """Select samples by number (n,), in that order, or a range of them."""
        labels = None if self.labels is None else self.labels[index]
        return Split(take_samples(self.images, index), labels, self.call)


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
    """Make a data set of tensors, or raise `DataError` with the reason why they are none.

    Where `classes` is ``None``, the classes are named 0, 1, ... up to the largest label.
    """
    for part, split in (("training", train), ("test", test)):
        if len(split.images) == 0:
            raise DataError(f"{name}: there are no {part} images")
        if len(split.images) != len(split.required_labels):
            raise DataError(
                f"{name}: {len(split.images)} {part} images but {len(split.required_labels)} labels: there must be one "
                "per image"
            )
        if 0 in split.images.shape:
            raise DataError(f"{name}: {part} images of shape {tuple(split.images.shape[1:])} have no pixels")
        if (least := int(split.required_labels.min())) < 0:
            raise DataError(f"{name}: {part} label {least} is out of range: labels start at 0")
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{tuple(train.images.shape[1:])} and test images {tuple(test.images.shape[1:])}"
        raise DataError(f"{name}: training images are {shapes}: they must have the same shape")
    largest = int(torch.cat([train.required_labels, test.required_labels]).max())
    if classes is None and largest >= max(MOST_CLASSES, len(train) + len(test)):
        raise DataError(f"{name}: label {largest} means more classes than any data set has: labels are 0, 1, 2, ...")
    if classes is None:
        classes = tuple(str(label) for label in range(largest + 1))
    for part, split in (("training", train), ("test", test)):
        if int(split.required_labels.max()) >= len(classes):
            raise DataError(
                f"{name}: {part} label {int(split.required_labels.max())} is out of range: "
                f"with {len(classes)} classes labels are 0 to {len(classes) - 1}"
            )
    preprocessing.check_channels(train.images.shape[1])
    preprocessing.check_size(*train.images.shape[2:])
    return DataSet(name, classes, train, test, preprocessing)
