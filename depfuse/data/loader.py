"""Batches of a split, on the device, without worker processes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from depfuse.data.augment import change, draw_changes
from depfuse.data.augmentation import Augmentation
from depfuse.data.floats import to_floats
from depfuse.data.inputs import Ragged, by_shape, count_samples, map_tensors, of_one_shape, take_samples
from depfuse.data.memory import GIBIBYTE, calibration_room
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.stored_images import StoredImages
from depfuse.data.tensors import DataSet, Split
from depfuse.errors import DataError, DepfuseWarning
from depfuse.networks.forward import Called, Example, in_layout
from depfuse.text import counted


class Loader:
    """Batches of a split that lives on the device, images as bytes.

    Iterating gives pairs of inputs and labels (n,) int64, or others of `Split`, None where there are none. Images
    that are bytes are pre-processed to (n, C, H, W) float32; other inputs are given as they are, a batch that holds
    samples of several shapes in as many pieces. Batches differ in size by one sample at most and are never larger than
    `batch_size`, so that no small batch remains; with `drop_last` they all have `batch_size` samples and the rest is
    left out.

    With `shuffle`, the order and the augmentation are a function of (`seed`, `epoch`) alone, on every
    device, and each iteration that ends advances `epoch`. A batch of shuffled samples of several shapes has one shape.

    Parameters
    ----------
    split
        The samples; decoded, where they are files, and moved to `device` whole.
    preprocessing
        Applied to each batch of bytes on the device.
    batch_size
        Largest number of samples in a batch.

    Attributes
    ----------
    channels_last
        Give batches in channels-last memory layout.
    epoch
        Number of the pass, from which the order is drawn.
    mirrored
        See `Split`.
    part
        Index and number of parts: every batch is divided and this part is given; (0, 1) for whole batches.

    Raises
    ------
    DataError
        There are no samples, or `batch_size` is not positive.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing | None = None,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size} must be at least 1")
        if len(split) == 0:
            raise DataError("there are no images to load")
        held = split.held()
        self.images = map_tensors(lambda tensor: tensor.to(device), held.images)
        self.labels: Tensor | None = None if held.labels is None else held.labels.to(device)
        self.preprocessing = preprocessing or Preprocessing()
        self.call, self.mirrored = split.call, split.mirrored
        self._mirrorings: dict[bool | None, Loader] = {}
        if self.is_bytes:
            self.preprocessing.check_channels(self.images.shape[1])
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        # A set smaller than one batch is still a batch: dropping it would leave nothing.
        self.drop_last = drop_last and len(split) >= batch_size
        self.channels_last = False
        self.epoch = 0
        self.part = (0, 1)

    @property
    def count(self) -> int:
        """Number of samples."""
        return count_samples(self.images)

    @property
    def device(self) -> torch.device:
        """Device of the samples."""
        return next(part for part in tree_leaves(next(of_one_shape(self.images))[0]) if isinstance(part, Tensor)).device

    @property
    def is_bytes(self) -> bool:
        """Whether the samples are images (N, C, H, W) uint8, which are pre-processed."""
        return self.split.is_bytes

    @property
    def pictures(self) -> bool:
        """Whether the samples are images, or volumes of floats, which can be augmented and mixed."""
        return self.split.pictures

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width before pre-processing, of volumes channels, depth, ...; only of `pictures`."""
        return tuple(map(int, self.images.shape[1:]))

    @property
    def suited_augmentation(self) -> Augmentation:
        """Augmentation that keeps the meaning of most images; none of what is no image."""
        return Augmentation.suited_to(self.image_shape, self.mirrored) if self.pictures else Augmentation()

    @property
    def required_labels(self) -> Tensor:
        """The classes (N,) of images; raises `DataError` where there are none."""
        return self.split.required_labels

    def example(self, count: int = 1) -> Example:
        """Prepare the first samples as network inputs."""
        example: Example = self._prepared(next(of_one_shape(take_samples(self.images, slice(0, count))))[0])
        return example

    def first(self, count: int) -> Loader:
        """Restrict the loader to its first `count` samples, in batches of the same size."""
        return self.between(0, count)

    def between(self, start: int, end: int) -> Loader:
        """Restrict the loader to its samples from number `start` up to, not including, `end`."""
        return self._over(self.split.take(slice(start, end)))

    def taking(self, numbers: Tensor) -> Loader:
        """Restrict the loader to samples by number (n,), and leave it as it is otherwise."""
        loader = copy.copy(self)
        loader.images, loader._mirrorings = take_samples(self.images, numbers), {}
        loader.labels = None if self.labels is None else self.labels[numbers.to(self.device)]
        return loader

    def batches(self, start: int, end: int) -> Loader:
        """Restrict the loader to its batches from number `start` up to, not including, `end`.

        The new loader holds these samples alone, already augmented. The order must be fixed.
        """
        sizes = [len(batch) for batch in torch.tensor_split(torch.empty(self.count), len(self))]
        first, last = sum(sizes[:start]), sum(sizes[:end])
        part = self.split.take(slice(first, last))
        images = map_tensors(torch.clone, part.images)
        if self.augment:
            images = change(self.augment, images, self._drawn(self._generator())[first:last])
        # As many batches out of equal ones, cut into as many, are the same batches again.
        return self._over(replace(part, images=images, labels=None if part.labels is None else part.labels.clone()))

    def in_batches(self, size: int) -> Loader:
        """Change the size of batches to at most `size`, with the same samples in order, augmented alike.

        For methods whose result depends on batches, by batch statistics or by mixing images of a batch: the result no
        longer depends on the batches of the given loader.
        """
        return self._over(self.split, self.augment, self.seed, size)

    def mirroring(self, allowed: bool | None) -> Loader:
        """Say whether the images and their mirror images mean the same: each time by the same loader."""
        if allowed == self.mirrored:
            return self
        if allowed not in self._mirrorings:
            loader = copy.copy(self)
            loader.mirrored, loader._mirrorings = allowed, {}
            self._mirrorings[allowed] = loader
        return self._mirrorings[allowed]

    def augmented(self, augment: Augmentation, seed: int = 0) -> Loader:
        """Augment the same images in the same order, with changes drawn once: every pass gives the same images."""
        return self._over(self.split, augment, seed)

    @property
    def split(self) -> Split:
        """The samples on the device, with their labels."""
        return Split(self.images, self.labels, self.call, mirrored=self.mirrored)

    def _over(
        self, split: Split, augment: Augmentation | None = None, seed: int = 0, batch_size: int | None = None
    ) -> Loader:
        """Make a loader with these settings over other samples, in a fixed order."""
        loader = Loader(
            split,
            self.preprocessing,
            batch_size=batch_size or self.batch_size,
            device=self.device,
            augment=augment,
            seed=seed,
        )
        loader.channels_last = self.channels_last
        return loader

    def prepared(
        self, numbers: Tensor, augment: Augmentation | None, generator: torch.Generator, *, channels_last: bool = False
    ) -> Any:
        """Prepare samples by number (n,) as network inputs, augmented with changes that the generator draws."""
        images = take_samples(self.images, numbers.to(self.device, non_blocking=True))
        if augment:
            images = change(augment, images, draw_changes(augment, len(images), self.image_shape[1:], generator))
        return self._prepared(images, channels_last=channels_last)

    def _prepared(self, images: Any, *, channels_last: bool = False) -> Any:
        """Map samples of one shape to what a network is run on."""
        if self.is_bytes:
            images = to_floats(images, self.preprocessing, channels_last=channels_last)
        elif channels_last:
            images = in_layout(images, torch.channels_last)
        return images if self.call is None else Called(images, self.call)

    def __len__(self) -> int:
        return sum(map(self._batches_of, self._counts))

    @property
    def _counts(self) -> list[int]:
        """The numbers of samples among which batches are made: all, or those of each shape where they are shuffled."""
        return [len(numbers) for numbers in by_shape(self.images)] if self._sorted else [self.count]

    @property
    def _sorted(self) -> bool:
        return self.shuffle and isinstance(self.images, Ragged)

    def _batches_of(self, count: int) -> int:
        """Count the batches of so many samples; fewer than one batch are still one."""
        return max(1, count // self.batch_size) if self.drop_last else -(-count // self.batch_size)

    def _shuffled(self, generator: torch.Generator) -> list[Tensor]:
        """Draw batches of samples of one shape, by number."""
        batches: list[Tensor] = []
        for numbers in by_shape(self.images):
            order = numbers[torch.randperm(len(numbers), generator=generator)]
            count = self._batches_of(len(order))
            kept = count * self.batch_size if self.drop_last else len(order)
            batches += torch.tensor_split(order[:kept], count)
        return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]

    def _ordered(self, generator: torch.Generator) -> list[Tensor]:
        """Draw the batches of a pass, by number."""
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        if self.drop_last:
            order = order[: len(self) * self.batch_size]
        return list(torch.tensor_split(order.to(self.device), len(self)))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        generator = self._generator()
        batches = self._shuffled(generator) if self._sorted else self._ordered(generator)
        drawn = self._drawn(generator) if self.augment else None
        part, parts = self.part
        for whole in batches:
            batch = torch.tensor_split(whole.to(self.device), parts)[part]
            images, labels = take_samples(self.images, batch), None if self.labels is None else self.labels[batch]
            if self.augment and drawn is not None:
                images = change(self.augment, images, drawn[batch])
            start = 0
            for piece, size in of_one_shape(images):
                piece_labels = None if labels is None else labels[start : start + size]
                yield self._prepared(piece, channels_last=self.channels_last), piece_labels
                start += size
        if self.shuffle:
            self.epoch += 1

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """Draw the changes of all images."""
        assert self.augment is not None
        return draw_changes(self.augment, self.count, self.images.shape[2:], generator).to(self.device)


def calibration_loader(
    data: DataSet,
    count: int,
    *,
    batch_size: int = 250,
    device: torch.device | str = "cpu",
    seed: int = 0,
    room: float | None = None,
) -> Loader:
    """Load `count` training images drawn at random without replacement, in a fixed order.

    All images where there are fewer than `count`; no method that calibrates reads the labels, of which only classes of
    images are kept. Of files, no more than take `room` bytes, by default a quarter of the free memory, with a
    `DepfuseWarning`.

    Raises
    ------
    DataError
        Fewer than two images: neither correlations nor BatchNorm statistics exist then.
    """
    if len(data.train) == 0:
        raise DataError(
            f"{data.name} has only test images, and no method may see these: give training images as well, or the"
            " images of these alone, which are then divided"
        )
    count = min(count, len(data.train), _room_for(data.train.images, count, room))
    if count < 2:
        few = f"{counted(count, 'calibration image')} {'is' if count == 1 else 'are'} too few for statistics"
        raise DataError(f"{few}: give at least 2, better 2000")
    chosen = calibration_order(len(data.train), seed)[:count]
    drawn = data.train.take(chosen)
    drawn = drawn if drawn.of_classes else replace(drawn, labels=None)
    return Loader(drawn, data.preprocessing, batch_size=batch_size, device=device)


def calibration_order(count: int, seed: int) -> Tensor:
    """Draw the order (count,) in which calibration takes training images: fewer are the first of more."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed(seed, 0)))


def _room_for(images: Any, wanted: int, room: float | None) -> int:
    """Count the image files that calibration may hold in memory; warn where they are fewer than wanted."""
    if not isinstance(images, StoredImages):
        return wanted
    room = calibration_room() if room is None else room
    wanted, each = min(wanted, len(images)), images.nbytes / len(images)
    if wanted * each <= room:
        return wanted
    count = int(room / each)
    warnings.warn(
        f"{count} of {wanted} calibration images are used: {wanted} as large as {images.example} take"
        f" {wanted * each / GIBIBYTE:.1f} GiB, and {room / GIBIBYTE:.1f} are for them",
        DepfuseWarning,
        stacklevel=3,
    )
    return count


def epoch_seed(*numbers: int) -> int:
    """Mix seed, epoch and further numbers into a 63-bit seed, so that neighbouring epochs are independent."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
