"""Augmentation: random changes of training images. A description, which needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
