"""Random changes to training images: flip, translate and cutout, drawn on the host, applied on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Attributes
    ----------
    flip
        Mirror left to right, with probability one half.
    translate
        Shift by up to this many pixels in each direction; what comes in is black.
    cutout
        Side, in pixels, of a square around a random pixel that is made black (DeVries & Taylor 2017).
    """

    flip: bool = False
    translate: int = 0
    cutout: int = 0

    @classmethod
    def suited_to(cls, image_shape: tuple[int, int, int]) -> Augmentation:
        """What most images (channels, height, width) can bear without meaning something else.

        Colour images are mirrored and shifted by an eighth of their side; grey ones, often digits and
        letters that mean something else in the mirror, are only shifted, by a twelfth.
        """
        channels, height, width = image_shape
        colour = channels >= 3
        side = min(height, width)
        return cls(flip=colour, translate=round(side / 8) if colour else math.ceil(side / 12))

    def __bool__(self) -> bool:
        return self.flip or self.translate > 0 or self.cutout > 0

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw what happens to `count` images: (count, 5) int64 of flip, shifts and cutout centre (y, x).

        Drawn on the host, so that every device sees the same images for the same seed.
        """
        bounds = (2, 2 * self.translate + 1, 2 * self.translate + 1, height, width)
        return torch.stack([torch.randint(bound, (count,), generator=generator) for bound in bounds], 1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Change images (N, C, H, W) as was drawn for them (N, 5)."""
        height, width = images.shape[-2:]
        flips, down, right, centre_y, centre_x = drawn.to(images.device).unbind(1)
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        if self.flip or self.translate:
            mirrored = torch.where(flips[:, None] == 1, columns.flip(0), columns) if self.flip else columns[None]
            pad = self.translate
            if pad:
                images = F.pad(images, (pad, pad, pad, pad))
            # One gather does both; channels come last, which is also how the network likes them.
            number = torch.arange(len(images), device=images.device)[:, None, None]
            chosen_rows = (rows + down[:, None])[:, :, None]
            chosen_columns = (mirrored + right[:, None])[:, None, :]
            images = images.permute(0, 2, 3, 1)[number, chosen_rows, chosen_columns].permute(0, 3, 1, 2)
        if self.cutout:
            half = self.cutout // 2
            first_row, first_column = (centre_y - half)[:, None], (centre_x - half)[:, None]
            inside_rows = (rows >= first_row) & (rows < first_row + self.cutout)
            inside_columns = (columns >= first_column) & (columns < first_column + self.cutout)
            images = images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)
        return images


def mix(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) with up to half of another one in it, in their memory layout.

    Between images a network's outputs are asked for where it was not trained: what two networks have in common there is
    more than what they know by heart (function matching, Beyer et al. 2022, section 3.1; mixup, Zhang et al. 2018).
    """
    share = 0.5 * torch.rand(len(images), generator=generator, dtype=torch.float32).to(images).reshape(-1, 1, 1, 1)
    other = torch.randperm(len(images), generator=generator).to(images.device)
    return images + share * (images[other] - images)
