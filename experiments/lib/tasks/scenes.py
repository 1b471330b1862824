"""Inputs and targets that a seed draws: digits on canvases, crops of photographs, waves and volumes.

Digits are scikit-learn's, the photographs its two sample images. A parent of other knowledge (`which` 0 or 1) sees nine
tenths of its samples from its own half of the labels, ranges or pictures, and one tenth from the other; with None all
are alike. Test samples are drawn from other digits, and other parts of the pictures, than those for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

OWN = 0.9  # share of a parent's samples from its own half
TRAINED_DIGITS = 1297
TRAINED_WIDTH = 0.75  # share of a picture's width from which training crops are taken


@dataclass(frozen=True)
class Draw:
    """What is drawn: how many samples, by which seed, for training or for a test, and for which parent.

    Attributes
    ----------
    count
        Number of samples.
    seed
        Of all random choices.
    test
        Whether they are test samples.
    which
        The parent of other knowledge that they are for; None for samples of all kinds alike.
    """

    count: int
    seed: int
    test: bool = False
    which: int | None = None

    @property
    def generator(self) -> torch.Generator:
        """A generator of its own."""
        return torch.Generator().manual_seed(2 * self.seed + self.test)

    def halves(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Draw the half, 0 or 1, that each sample is of."""
        share = 0.5 if self.which is None else (1 - OWN, OWN)[self.which]
        return (torch.rand(self.count, *shape, generator=generator) < share).long()

    def kinds(self, kinds: int, generator: torch.Generator, *shape: int) -> Tensor:
        """Draw kinds below an even number: the first half of them is parent 0's own."""
        half = kinds // 2
        return self.halves(generator, *shape) * half + torch.randint(half, (self.count, *shape), generator=generator)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.images, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order].long()


def _digits_of(labels: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
    """Draw an image (8, 8) for each label (...)."""
    images, known = (part[TRAINED_DIGITS:] if draw.test else part[:TRAINED_DIGITS] for part in _digits())
    found = torch.empty(*labels.shape, 8, 8)
    for label in labels.unique().tolist():
        places = labels == label
        own = images[known == label]
        found[places] = own[torch.randint(len(own), (int(places.sum()),), generator=generator)]
    return found


def _placed(images: Tensor, side: int, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Paint images (N, 8, 8) onto canvases (N, 1, side, side).

    Parameters
    ----------
    angle, scale
        (N,): radians, and sides relative to the canvas.
    shift
        (N, 2): of their centres, in halves of the canvas.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turned = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    moved = -(turned @ shift[:, :, None])
    grid = F.affine_grid(torch.cat([turned, moved], 2), [len(images), 1, side, side], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)


def _about(count: int, middle: float, spread: float, generator: torch.Generator, *shape: int) -> Tensor:
    """Draw numbers evenly between middle - spread and middle + spread."""
    return middle + spread * (2 * torch.rand(count, *shape, generator=generator) - 1)


def _noisy(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=generator)


def digit(draw: Draw, noise: float = 0.2, side: int = 12) -> tuple[Tensor, Tensor]:
    """Draw digits (N, 1, side, side), slightly turned and moved, and their labels (N,)."""
    generator = draw.generator
    labels = draw.kinds(10, generator)
    n = draw.count
    placed = _placed(
        _digits_of(labels, draw, generator),
        side,
        _about(n, 0.0, 0.2, generator),
        _about(n, 0.9, 0.1, generator),
        _about(n, 0.0, 0.1, generator, 2),
    )
    return _noisy(placed, noise, generator), labels


def parity(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw digits, and whether they are odd (N, 1)."""
    images, labels = digit(draw)
    return images, (labels % 2).float()[:, None]


def angle(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw turned digits 2, 3, 4, 5 and 7 (N, 1, 12, 12), and by how many degrees (N, 1): a half is one direction."""
    generator = draw.generator
    n = draw.count
    degrees = torch.rand(n, generator=generator) * 60 * (2 * draw.halves(generator) - 1)
    labels = torch.tensor([2, 3, 4, 5, 7])[torch.randint(5, (n,), generator=generator)]
    images = _digits_of(labels, draw, generator)
    placed = _placed(images, 12, degrees.deg2rad(), torch.full((n,), 0.9), torch.zeros(n, 2))
    return _noisy(placed, 0.05, generator), degrees[:, None]


def place(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw digits somewhere (N, 1, 16, 16); column in pixels, row in halves of the canvas, and size in per cent."""
    generator = draw.generator
    n = draw.count
    column = torch.rand(n, generator=generator) * 0.6 * (2 * draw.halves(generator) - 1)  # a half is a side
    row, size = _about(n, 0.0, 0.6, generator), _about(n, 0.5, 0.15, generator)
    labels = torch.randint(10, (n,), generator=generator)
    shift = torch.stack([column, row], 1)
    placed = _placed(_digits_of(labels, draw, generator), 16, torch.zeros(n), size, shift)
    return _noisy(placed, 0.1, generator), torch.stack([8 + 8 * column, row, 100 * size], 1)


def present(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw four cells of which three hold a digit from 0 to 5 (N, 1, 16, 16), and which of these are there (N, 6)."""
    generator = draw.generator
    labels = draw.kinds(6, generator, 4)
    shown = torch.rand(draw.count, 4, generator=generator).argsort(1) < 3
    images = _digits_of(labels, draw, generator) * shown[..., None, None]
    canvas = images.unflatten(1, (2, 2)).transpose(2, 3).reshape(draw.count, 1, 16, 16)
    found = (F.one_hot(labels, 6) * shown[..., None]).amax(1).float()
    return _noisy(canvas, 0.2, generator), found


def segments(draw: Draw, side: int = 16) -> tuple[Tensor, Tensor]:
    """Draw two digits 0, 1, 4 or 7 (N, 1, 16, 16), and for each pixel of which it is (N, 16, 16), 0 of none."""
    generator = draw.generator
    n = draw.count
    kinds = draw.kinds(4, generator, 2)
    canvas, target = torch.zeros(n, 1, side, side), torch.zeros(n, side, side, dtype=torch.int64)
    for number in range(2):
        images = _digits_of(torch.tensor([0, 1, 4, 7])[kinds[:, number]], draw, generator)
        placed = _placed(
            images,
            side,
            _about(n, 0.0, 0.3, generator),
            _about(n, 0.55, 0.05, generator),
            _about(n, 0.0, 0.45, generator, 2),
        )
        seen = placed[:, 0] > 0.4
        target = torch.where(seen, 1 + kinds[:, number, None, None], target)
        canvas = torch.where(seen[:, None], placed, torch.maximum(canvas, placed))
    return _noisy(canvas, 0.1, generator), target


@lru_cache(maxsize=1)
def _pictures() -> list[Tensor]:
    """The two pictures (3, H, W)."""
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in load_sample_images().images]


def crops(draw: Draw, side: int) -> Tensor:
    """Draw crops of the pictures (N, 3, side, side) with values in [0, 1], at half their resolution."""
    generator = draw.generator
    kinds = draw.halves(generator).tolist()
    places = torch.rand(draw.count, 2, generator=generator).tolist()
    pictures = [F.avg_pool2d(picture[None], 2)[0] for picture in _pictures()]
    found = []
    for kind, (down, across) in zip(kinds, places, strict=True):
        picture = pictures[kind]
        height, width = picture.shape[1:]
        border = round(TRAINED_WIDTH * width)
        begin, end = (border, width) if draw.test else (0, border)
        top, left = int(down * (height - side)), begin + int(across * (end - begin - side))
        found.append(picture[:, top : top + side, left : left + side])
    return torch.stack(found)


def same_crops(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw crops (N, 3, 16, 16), and the same again."""
    found = crops(draw, 16)
    return found, found


def halved_crops(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw crops at half their size, with noise (N, 3, 8, 8), and as they were (N, 3, 16, 16)."""
    found = crops(draw, 16)
    return _noisy(F.avg_pool2d(found, 2), 0.08, torch.Generator().manual_seed(2 * draw.seed + draw.test + 77)), found


def waves(draw: Draw, length: int = 64) -> tuple[Tensor, Tensor]:
    """Draw waves of six forms (N, 1, 64), and their forms (N,)."""
    generator = draw.generator
    kinds = draw.kinds(6, generator)
    n = draw.count
    time = torch.linspace(0, 1, length)[None]
    periods, phase = _about(n, 3.0, 1.0, generator)[:, None], torch.rand(n, 1, generator=generator)
    turn = (periods * time + phase) % 1
    chirp = (periods * time * (0.5 + time) + phase) % 1
    forms = torch.stack([
        (2 * torch.pi * turn).sin(),
        (turn < 0.5).float() * 2 - 1,
        2 * turn - 1,
        1 - 2 * (2 * turn - 1).abs(),
        (2 * torch.pi * chirp).sin(),
        (turn < 0.2).float() * 2 - 1,
    ])  # fmt: skip
    return _noisy(forms[kinds, torch.arange(n)][:, None], 0.6, generator), kinds


def volumes(draw: Draw, side: int = 10) -> tuple[Tensor, Tensor]:
    """Draw volumes of six forms (N, 1, 10, 10, 10), and their forms (N,)."""
    generator = draw.generator
    kinds = draw.kinds(6, generator)
    n = draw.count
    line = torch.linspace(-1, 1, side)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))[None]
    at = grid - _about(n, 0.0, 0.3, generator, 3)[..., None, None, None]
    size = _about(n, 0.55, 0.1, generator)[:, None, None, None]
    far, flat = at.square().sum(1).sqrt(), at[:, 1:].square().sum(1).sqrt()
    most, least = at.abs().amax(1), at.abs().sum(1)
    forms = torch.stack([
        far < size,
        most < 0.8 * size,
        (flat < 0.6 * size) & (at[:, 0].abs() < size),
        (far < 1.1 * size) & (far > 0.7 * size),
        least < 1.3 * size,
        (flat < 0.5 * (size - at[:, 0])) & (at[:, 0].abs() < size),
    ]).float()  # fmt: skip
    return _noisy(forms[kinds, torch.arange(n)][:, None], 0.7, generator), kinds


def digit_with_row(draw: Draw) -> tuple[Any, Tensor]:
    """Draw dim digits with a row of eight numbers that tells two neighbouring digits from others, and their labels."""
    images, labels = digit(draw, noise=0.7)
    codes = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))
    rows = codes[labels // 2]
    return (images, _noisy(rows, 1.0, torch.Generator().manual_seed(2 * draw.seed + draw.test + 77))), labels
