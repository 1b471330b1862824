"""Batches of a split, on the device, without worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from depfuse.data.augment import change, draw_changes
from depfuse.data.augmentation import Augmentation
from depfuse.data.floats import to_floats
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet, Split
from depfuse.errors import DataError


class Loader:
    """Batches of pre-processed images that live on the device as bytes.

    Iterating gives pairs of images (n, C, H, W) float32 and labels (n,) int64. Batches differ in size
    by one image at most and are never larger than `batch_size`, so that no small batch remains; with
    `drop_last` they all have `batch_size` images and the rest is left out.

    With `shuffle`, the order and the augmentation are a function of (`seed`, `epoch`) alone, on every
    device, and each iteration that ends advances `epoch`.

    Parameters
    ----------
    split
        The images; moved to `device` whole, as uint8.
    preprocessing
        Applied to each batch on the device.
    batch_size
        Largest number of images in a batch.

    Attributes
    ----------
    channels_last
        Give batches in channels-last memory layout.
    epoch
        Number of the pass, from which the order is drawn.
    part
        Index and number of parts: every batch is divided and this part is given; (0, 1) for whole batches.

    Raises
    ------
    DataError
        There are no images, or `batch_size` is not positive.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
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
        preprocessing.check_channels(split.images.shape[1])
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self.preprocessing = preprocessing
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
        """Number of images."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.images.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width before pre-processing."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def first(self, count: int) -> Loader:
        """Restrict the loader to its first `count` images, in batches of the same size."""
        return self.between(0, count)

    def between(self, start: int, end: int) -> Loader:
        """Restrict the loader to its images from number `start` up to, not including, `end`."""
        return self._over(self.images[start:end], self.labels[start:end])

    def batches(self, start: int, end: int) -> Loader:
        """Restrict the loader to its batches from number `start` up to, not including, `end`.

        The new loader holds these images alone, already augmented. The order must be fixed.
        """
        sizes = [len(batch) for batch in torch.tensor_split(torch.empty(self.count), len(self))]
        first, last = sum(sizes[:start]), sum(sizes[:end])
        images = self.images[first:last].clone()
        if self.augment:
            images = change(self.augment, images, self._drawn(self._generator())[first:last])
        # As many batches out of equal ones, cut into as many, are the same batches again.
        return self._over(images, self.labels[first:last].clone())

    def in_batches(self, size: int) -> Loader:
        """Change the size of batches to at most `size`, with the same images in order, augmented alike.

        For methods whose result depends on batches, by batch statistics or by mixing images of a batch: the result no
        longer depends on the batches of the given loader.
        """
        return self._over(self.images, self.labels, self.augment, self.seed, size)

    def augmented(self, augment: Augmentation, seed: int = 0) -> Loader:
        """Augment the same images in the same order, with changes drawn once: every pass gives the same images."""
        return self._over(self.images, self.labels, augment, seed)

    def _over(
        self,
        images: Tensor,
        labels: Tensor,
        augment: Augmentation | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Loader:
        """Make a loader with these settings over other images, in a fixed order."""
        loader = Loader(
            Split(images, labels),
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
    ) -> Tensor:
        """Prepare images by number (n,) as network inputs, augmented with changes that the generator draws."""
        images = self.images[numbers.to(self.device)]
        if augment:
            images = change(augment, images, draw_changes(augment, len(images), *self.image_shape[1:], generator))
        return to_floats(images, self.preprocessing, channels_last=channels_last)

    def __len__(self) -> int:
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = self._generator()
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        drawn = self._drawn(generator) if self.augment else None
        order = order.to(self.device)
        if self.drop_last:
            order = order[: len(self) * self.batch_size]
        part, parts = self.part
        for whole in torch.tensor_split(order, len(self)):
            batch = torch.tensor_split(whole, parts)[part]
            images = self.images[batch]
            if self.augment and drawn is not None:
                images = change(self.augment, images, drawn[batch])
            yield to_floats(images, self.preprocessing, channels_last=self.channels_last), self.labels[batch]
        if self.shuffle:
            self.epoch += 1

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """Draw the changes of all images."""
        assert self.augment is not None
        height, width = self.images.shape[-2:]
        return draw_changes(self.augment, self.count, height, width, generator).to(self.device)


def calibration_loader(
    data: DataSet, count: int, *, batch_size: int = 250, device: torch.device | str = "cpu", seed: int = 0
) -> Loader:
    """Load `count` training images drawn at random without replacement, in a fixed order.

    All images where there are fewer than `count`; no method that calibrates reads the labels.

    Raises
    ------
    DataError
        Fewer than two images: neither correlations nor BatchNorm statistics exist then.
    """
    count = min(count, len(data.train))
    if count < 2:
        raise DataError(f"{count} calibration images are too few for statistics: give at least 2, better 2000")
    generator = torch.Generator().manual_seed(epoch_seed(seed, 0))
    chosen = torch.randperm(len(data.train), generator=generator)[:count]
    return Loader(data.train.take(chosen), data.preprocessing, batch_size=batch_size, device=device)


def epoch_seed(*numbers: int) -> int:
    """Mix seed, epoch and further numbers into a 63-bit seed, so that neighbouring epochs are independent."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
