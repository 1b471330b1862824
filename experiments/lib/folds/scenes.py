"""Segmentation tasks made of digits: pasted over parts of pictures, and extruded in noisy volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from depfuse.data import load_data
from experiments.lib.data_files import files_of

DARK = 0.3  # times their brightness have pictures that digits are pasted over
SIDE = 24  # pixels of a scene
NOISE = 0.3  # standard deviation in volumes
SHOWN = (0, 1, 7)  # the digits that are classes
MOST = 10_000  # of CIFAR-10's pictures, and of MNIST's digits of these classes
IN_VOLUMES = 3  # classes, with the background
INK = 0.4  # of white; pixels of a digit that are darker are its background


@dataclass(frozen=True)
class Scenes:
    """A segmentation task.

    Attributes
    ----------
    title
        What tables call it.
    channels, classes, dimensions
        Of its inputs, with the background as class 0.
    draw
        (number of scenes, generator, whether they are for tests) -> inputs (N, C, ...) and classes (N, ...).
    """

    title: str
    channels: int
    classes: int
    dimensions: int
    draw: Callable[[int, torch.Generator, bool], tuple[Tensor, Tensor]]


def spread(numbers: Tensor) -> Tensor:
    """Take `MOST` numbers evenly: files may be sorted by class."""
    return numbers[torch.linspace(0, len(numbers) - 1, min(MOST, len(numbers))).long()]


@lru_cache(maxsize=4)
def digits(side: int, test: bool) -> tuple[Tensor, Tensor]:
    """MNIST's zeros, ones and sevens (N, side, side) in [0, 1] with their classes 1, 2 and 3, of training or test."""
    data = load_data(files_of(["mnist"], {})["mnist"])
    part = data.required_test if test else data.train
    labels = part.required_labels
    numbers = spread(torch.isin(labels, torch.tensor(SHOWN)).nonzero()[:, 0])
    images = functional.interpolate(part.images[numbers].float() / 255, side, mode="area")
    return images[:, 0], 1 + torch.searchsorted(torch.tensor(SHOWN), labels[numbers])


@lru_cache(maxsize=2)
def pictures(test: bool) -> Tensor:
    """CIFAR-10's pictures (N, 3, 32, 32) in [0, 1], of training or test."""
    data = load_data(files_of(["cifar10"], {})["cifar10"])
    images = (data.required_test if test else data.train).images
    return images[spread(torch.arange(len(images)))].float() / 255


def over_pictures(count: int, generator: torch.Generator, test: bool) -> tuple[Tensor, Tensor]:
    """Paste a white digit over the middle of each picture, which is darkened."""
    side, (shapes, kinds), found = 16, digits(16, test), pictures(test)
    edge = (found.shape[-1] - SIDE) // 2
    found = found[torch.randint(len(found), (count,), generator=generator), :, edge : edge + SIDE, edge : edge + SIDE]
    images, labels = DARK * found, torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for image, mask in zip(images, labels, strict=True):
        number = int(torch.randint(len(shapes), (), generator=generator))
        top, left = torch.randint(SIDE - side + 1, (2,), generator=generator).tolist()
        box = slice(top, top + side), slice(left, left + side)
        own = image[(slice(None), *box)]
        own += shapes[number] * (1 - own)
        mask[box][shapes[number] > INK] = kinds[number]
    return (images - DARK / 2) / DARK, labels


def in_volumes(count: int, generator: torch.Generator, test: bool) -> tuple[Tensor, Tensor]:
    """Extrude a zero or a one through half of the slices of each volume, and add noise."""
    depth, across, side = 8, 16, 14
    shapes, kinds = digits(side, test)
    shapes, kinds = shapes[kinds < IN_VOLUMES], kinds[kinds < IN_VOLUMES]
    images = torch.randn(count, 1, depth, across, across, generator=generator) * NOISE
    labels = torch.zeros(count, depth, across, across, dtype=torch.int64)
    for image, mask in zip(images, labels, strict=True):
        number = int(torch.randint(len(shapes), (), generator=generator))
        top, left = torch.randint(across - side + 1, (2,), generator=generator).tolist()
        first = int(torch.randint(depth // 2 + 1, (), generator=generator))
        box = slice(first, first + depth // 2), slice(top, top + side), slice(left, left + side)
        image[0][box] += shapes[number]
        mask[box][:, shapes[number] > INK] = kinds[number]
    return images, labels


SCENES: Mapping[str, Scenes] = {
    "pictures": Scenes("digits over pictures, 24 x 24", 3, 4, 2, over_pictures),
    "volumes": Scenes("extruded digits in noise, 8 x 16 x 16", 1, IN_VOLUMES, 3, in_volumes),
}
