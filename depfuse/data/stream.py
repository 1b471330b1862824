"""Batches of images that are decoded as they are needed: a pass holds one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from depfuse.data.loader import Loader
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.stored_images import StoredImages
from depfuse.data.tensors import Split
from depfuse.errors import DataError


class Stream:
    """Images in order, batch by batch, as a `Loader` gives them; files are decoded anew in every pass.

    Parameters
    ----------
    split
        The images.
    preprocessing
        Applied to each batch on the device.
    batch_size
        Largest number of images in a batch.
    device
        Where batches are given.
    """

    def __init__(
        self, split: Split, preprocessing: Preprocessing, *, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        if len(split) == 0:
            raise DataError("there are no images to load")
        self._split, self._preprocessing = split, preprocessing
        self._batch_size, self._device = batch_size, device

    @property
    def split(self) -> Split:
        """The images with their labels."""
        return self._split

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self._split)

    def first(self, count: int) -> Stream:
        """Restrict the stream to its first `count` images, in batches of the same size."""
        few = self._split.take(slice(0, count))
        return Stream(few, self._preprocessing, batch_size=self._batch_size, device=self._device)

    def __len__(self) -> int:
        return -(-self.count // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for numbers in torch.tensor_split(torch.arange(self.count), len(self)):
            batch = self._split.take(slice(int(numbers[0]), int(numbers[-1]) + 1))
            yield from Loader(batch, self._preprocessing, batch_size=self._batch_size, device=self._device)


def batches_of(
    split: Split, preprocessing: Preprocessing, *, batch_size: int, device: torch.device | str = "cpu"
) -> Loader | Stream:
    """Load images in order: on the device at once, or batch by batch where they are stored and many."""
    if isinstance(split.images, StoredImages):
        split = replace(split, images=split.images.held())
    kind = Stream if isinstance(split.images, StoredImages) else Loader
    return kind(split, preprocessing, batch_size=batch_size, device=device)
