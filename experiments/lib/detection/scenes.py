"""Pictures with digits in boxes: MNIST over CIFAR-10, or what is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.data import load_data
from experiments.lib.data_files import files_of

MOST = 3  # digits in a picture
SIDES = (20, 40)  # pixels of a digit's canvas
OVERLAP = 2  # pixels that boxes are apart, at least
TRIES = 20
BACKGROUNDS = 5000  # pictures that digits are painted over


@dataclass(frozen=True)
class Scene:
    """What is in a picture: boxes (n, 4), left, top, right and bottom in pixels, and labels (n,)."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Material:
    """Digits (N, h, w) and backgrounds (M, 3, h, w) in [0, 1], with the digits' labels (N,)."""

    digits: Tensor
    labels: Tensor
    backgrounds: Tensor

    @classmethod
    def of(cls, *, test: bool) -> Material:
        """Read MNIST and CIFAR-10."""
        files = files_of(["mnist", "cifar10"], {})
        digits, backgrounds = load_data(files["mnist"]), load_data(files["cifar10"])
        own, behind = (data.required_test if test else data.train for data in (digits, backgrounds))
        pixels = own.images.reshape(len(own.images), 28, 28)
        return cls(_unit(pixels), own.labels.long(), _unit(behind.images[:5000]))


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def draw(
    material: Material, count: int, classes: Sequence[int], seed: int, side: int = 96
) -> tuple[Tensor, list[Scene]]:
    """Draw pictures (count, 3, side, side) in [0, 1] that show one to three digits of some classes, and where."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.isin(material.labels, torch.tensor(list(classes))).nonzero()[:, 0]
    chosen = material.backgrounds[torch.randint(len(material.backgrounds), (count,), generator=generator)]
    pictures = F.interpolate(chosen, side, mode="bilinear", align_corners=False) * 0.6
    scenes = []
    for picture in pictures:
        boxes: list[list[float]] = []
        labels = []
        for _ in range(int(torch.randint(1, MOST + 1, (), generator=generator))):
            number = int(known[torch.randint(len(known), (), generator=generator)])
            if (box := _paste(picture, material.digits[number], boxes, generator)) is not None:
                boxes.append(box)
                labels.append(int(material.labels[number]))
        scenes.append(Scene(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)))
    return pictures, scenes


def _paste(
    picture: Tensor, digit: Tensor, boxes: Sequence[Sequence[float]], generator: torch.Generator
) -> list[float] | None:
    """Paint a digit into a picture (3, side, side) where it is free; None where there is no room."""
    side = picture.shape[-1]
    size = int(torch.randint(SIDES[0], SIDES[1] + 1, (), generator=generator))
    scaled = F.interpolate(digit[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    rows, columns = (scaled > 0.2).any(1).nonzero()[:, 0], (scaled > 0.2).any(0).nonzero()[:, 0]
    ink = scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    colour = 0.6 + 0.4 * torch.rand(3, 1, 1, generator=generator)
    for _ in range(TRIES):
        top = int(torch.randint(side - height + 1, (), generator=generator))
        left = int(torch.randint(side - width + 1, (), generator=generator))
        box = [left, top, left + width, top + height]
        if all(_apart(box, other) for other in boxes):
            place = picture[:, top : top + height, left : left + width]
            place.copy_(place * (1 - ink) + colour * ink)
            return [float(edge) for edge in box]
    return None


def _apart(box: Sequence[float], other: Sequence[float]) -> bool:
    return (
        box[0] >= other[2] + OVERLAP or other[0] >= box[2] + OVERLAP
        or box[1] >= other[3] + OVERLAP or other[1] >= box[3] + OVERLAP
    )  # fmt: skip
