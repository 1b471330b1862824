"""A data set is a few tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from depfuse.data.augmentation import Augmentation
from depfuse.data.floats import to_floats
from depfuse.data.inputs import Index, count_samples, is_pictures, is_volumes, map_tensors, of_one_shape, take_samples
from depfuse.data.masks import MaskFiles
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.stored_images import StoredImages
from depfuse.errors import DataError
from depfuse.networks.forward import Call, Called, Example
from depfuse.tasks.label_kinds import are_classes

MOST_CLASSES = 100_000  # where there are fewer images than that


@dataclass(frozen=True)
class Split:
    """Inputs and their labels.

    Attributes
    ----------
    images
        Images (N, C, H, W) uint8, decoded or as `StoredImages`; or whatever else networks take, ready for them: a
        tensor (N, ...), several in a structure, or `Ragged`.
    labels
        Classes of images, (N,) int64; of pixels (N, H, W), decoded or as `MaskFiles`; or what else outputs are scored
        by, (N, ...): labels of 0 and 1, numbers in float32. None where they are not known.
    call
        How a network is run on a batch of them, where it is not by the inputs alone; batches are `Called` then.
    sources
        Number (N,) of the photograph or volume that each sample is cut out of; None where each is one of its own.
    mirrored
        Whether images and their mirror images mean the same; None where the kind of image decides it.
    """

    images: Any
    labels: Any = None
    call: Call | None = None
    sources: Tensor | None = None
    mirrored: bool | None = None

    def __len__(self) -> int:
        return count_samples(self.images)

    @property
    def required_labels(self) -> Tensor:
        """The classes (N,) of images; raises `DataError` where there are none."""
        if self.labels is None:
            raise DataError("labels are needed here, and these data have none: give data with labels")
        if not self.of_classes:
            raise DataError(
                f"classes of images are needed here, (N,), and the labels are of shape {tuple(self.labels.shape)}: give"
                " data with a class for each image"
            )
        labels: Tensor = self.labels
        return labels

    @property
    def of_classes(self) -> bool:
        """Whether the labels are classes of images: none of pixels, no numbers."""
        return are_classes(self.labels)

    @property
    def is_bytes(self) -> bool:
        """Whether the samples are images (N, C, H, W) uint8, of one row as well, which are pre-processed."""
        return (
            isinstance(self.images, (Tensor, StoredImages))
            and len(self.images.shape) == 4
            and self.images.dtype == torch.uint8
        )

    @property
    def pictures(self) -> bool:
        """Whether the samples are images, or volumes of floats, which can be augmented and mixed."""
        if self.call is not None or not (is_pictures(self.images) or is_volumes(self.images)):
            return False
        return self.is_bytes or self.images.dtype.is_floating_point

    @property
    def dense(self) -> bool:
        """Whether the labels are those of pixels."""
        return (
            self.labels is not None
            and self.labels.ndim > 1
            and hasattr(self.images, "shape")
            and self.labels.shape[1:] == self.images.shape[2:]
        )

    def take(self, index: Index) -> Split:
        """Select samples by number (n,), in that order, or a range of them."""
        labels = None if self.labels is None else self.labels[index]
        sources = None if self.sources is None else self.sources[index if isinstance(index, slice) else index.cpu()]
        return Split(take_samples(self.images, index), labels, self.call, sources, self.mirrored)

    def held(self) -> Split:
        """Decode images and masks that are files, all of them."""
        images = self.images.decoded() if isinstance(self.images, StoredImages) else self.images
        labels = self.labels.decoded() if isinstance(self.labels, MaskFiles) else self.labels
        return replace(self, images=images, labels=labels)


@dataclass(frozen=True)
class DataSet:
    """Training and test images, the names of the classes and the pre-processing of the images.

    Attributes
    ----------
    name
        What the data are called.
    classes
        The names of the classes, as many as the labels mean; none where there are no labels, or these are no classes.
    train
        The training images; none where there are only images for tests.
    test
        The test images; None where there are none.
    preprocessing
        What happens to images before a network.
    by_name
        Whether the labels are the places of names in alphabetical order, and mean nothing by themselves.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split | None
    preprocessing: Preprocessing
    by_name: bool = False

    @property
    def required_test(self) -> Split:
        """The test images; raises `DataError` where there are none."""
        if self.test is None:
            raise DataError(f"{self.name} has no test images, and they are needed here: give data with a test set")
        return self.test

    @property
    def labelled(self) -> bool:
        """Whether there are test images with labels."""
        return self.test is not None and self.test.labels is not None

    @property
    def dense(self) -> bool:
        """Whether the labels are those of pixels."""
        return self.train.dense or (self.test is not None and self.test.dense)

    @property
    def of_classes(self) -> bool:
        """Whether the labels are classes of images."""
        return bool(self.classes) and not self.dense

    def without_labels(self) -> DataSet:
        """Leave all labels out."""
        test = None if self.test is None else replace(self.test, labels=None)
        return replace(self, classes=(), train=replace(self.train, labels=None), test=test)

    def without_classes(self) -> DataSet:
        """Take labels as what they are, numbers, and no longer as classes of images."""
        return replace(self, classes=())

    @property
    def _some(self) -> Split:
        return self.train if len(self.train) or self.test is None else self.test

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of the images as network inputs, or (C, D, H, W) of patches of volumes."""
        shape = tuple(map(int, self._some.images.shape[1:]))
        return shape if self.preprocessing.size is None else (shape[0], *self.preprocessing.size)

    @property
    def suited_augmentation(self) -> Augmentation:
        """Augmentation that keeps the meaning of most images; none of what is no image."""
        some = self._some
        return Augmentation.suited_to(self.image_shape, some.mirrored) if some.pictures else Augmentation()

    def example(self, count: int = 1, device: torch.device | str = "cpu") -> Any:
        """Prepare the first training samples as network inputs, `count` of them as far as they have one shape."""
        few = self._some.take(slice(0, count)).held()
        inputs: Example = map_tensors(lambda leaf: leaf.to(device), next(of_one_shape(few.images))[0])
        if few.is_bytes:
            assert isinstance(inputs, Tensor)
            return to_floats(inputs, self.preprocessing)
        return inputs if few.call is None else Called(inputs, few.call)


def checked_data_set(
    name: str,
    classes: tuple[str, ...] | None,
    train: Split | None,
    test: Split | None,
    preprocessing: Preprocessing,
    *,
    by_name: bool = False,
) -> DataSet:
    """Make a data set of images, or raise `DataError` with the reason why they are none.

    Where `classes` is ``None``, the classes are named 0, 1, ... up to the largest label. Labels may be missing, and
    either the training or the test images.
    """
    parts = {part: split for part, split in (("training", train), ("test", test)) if split is not None}
    for part, split in parts.items():
        if len(split.images) == 0:
            raise DataError(f"{name}: there are no {part} images")
        check_count(name, part, split)
        if 0 in split.images.shape[1:]:
            raise DataError(f"{name}: {part} images of shape {tuple(split.images.shape[1:])} have no pixels")
        if _some_classes(split) and (least := int(split.required_labels.min())) < 0:
            raise DataError(f"{name}: {part} label {least} is out of range: labels start at 0")
    if train is None:
        assert test is not None, "a data set has images"
        train = test.take(slice(0, 0))
    if test is not None and train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{tuple(train.images.shape[1:])} and test images {tuple(test.images.shape[1:])}"
        raise DataError(f"{name}: training images are {shapes}: they must have the same shape")
    kinds = {(split.labels.ndim, split.of_classes) for split in parts.values() if split.labels is not None}
    if len(kinds) > 1:
        raise DataError(f"{name}: the labels of training and test images are of different kinds: give one kind of both")
    labels_there = [split.required_labels for split in parts.values() if _some_classes(split)]
    largest = max((int(labels.max()) for labels in labels_there), default=-1)
    if classes is None and largest >= max(MOST_CLASSES, sum(map(len, parts.values()))):
        raise DataError(f"{name}: label {largest} means more classes than any data set has: labels are 0, 1, 2, ...")
    if classes is None:
        classes = tuple(str(label) for label in range(largest + 1))
    for part, split in parts.items():
        if _some_classes(split) and (most := int(split.required_labels.max())) >= len(classes):
            raise DataError(
                f"{name}: {part} label {most} is out of range: "
                f"with {len(classes)} classes labels are 0 to {len(classes) - 1}"
            )
    preprocessing.check_channels(train.images.shape[1])
    if preprocessing.size is not None:
        preprocessing.check_size(*train.images.shape[2:])
    return DataSet(name, classes, train, test, preprocessing, by_name)


def check_count(name: str, part: str, split: Split) -> None:
    """Raise `DataError` unless there is a label for each image, or none at all."""
    if split.labels is not None and len(split.images) != len(split.labels):
        raise DataError(
            f"{name}: {len(split.images)} {part} images but {len(split.labels)} labels: there must be one per image"
        )


def _some_classes(split: Split) -> bool:
    """Tell whether there are classes of images; other labels have been looked at as they were found."""
    return split.of_classes and len(split.labels) > 0
