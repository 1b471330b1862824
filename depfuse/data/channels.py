"""Images in grey or in colour, as a network takes them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from depfuse.data.crops import Crops
from depfuse.data.image_files import ImageFiles
from depfuse.data.tensors import DataSet, Split
from depfuse.data.torchvision_sets import Samples

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in ITU-R BT.601


def with_channels(data: DataSet, channels: int) -> DataSet | None:
    """Give the images of a data set one channel, by luminance, or three equal ones; None where they are of neither."""
    parts = [data.train, *([] if data.test is None else [data.test])]
    changed = [_changed(part, channels) for part in parts]
    if any(part is None for part in changed):
        return None
    train, *test = changed
    assert train is not None
    return dataclasses.replace(data, train=train, test=test[0] if test else None)


def _changed(split: Split, channels: int) -> Split | None:
    images: Any = split.images
    if {images.shape[1], channels} != {1, 3}:
        return None
    if isinstance(images, (Crops, ImageFiles, Samples)):
        count, _, height, width = images.shape
        return dataclasses.replace(split, images=dataclasses.replace(images, shape=(count, channels, height, width)))
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        return None
    if channels == 3:
        return dataclasses.replace(split, images=images.expand(-1, 3, -1, -1).contiguous())
    grey = torch.zeros_like(images[:, :1], dtype=torch.float32)
    for number, weight in enumerate(_LUMINANCE):
        grey.add_(images[:, number : number + 1], alpha=weight)
    return dataclasses.replace(split, images=grey.round_().to(torch.uint8))
