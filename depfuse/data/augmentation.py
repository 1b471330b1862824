"""Augmentation: random changes of training images. A description, which needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes
    ----------
    flip
        Mirror left to right, along the last axis, with probability one half.
    translate
        Shift by up to this many pixels in each direction; pixels from outside are black.
    cutout
        Side, in pixels, of a square around a random pixel that is made black (DeVries & Taylor 2017).
    """

    flip: bool = False
    translate: int = 0
    cutout: int = 0

    @classmethod
    def suited_to(cls, image_shape: tuple[int, ...], mirrored: bool | None = None) -> Augmentation:
        """Choose an augmentation that keeps the meaning of most images, (channels, height, width), or volumes.

        Colour images are mirrored and shifted by up to an eighth of their side; grey ones, often digits and
        letters that mean something else when mirrored, are only shifted, by a twelfth, and so are volumes (channels,
        depth, height, width), whose organs have a left and a right. Where it is known whether they mean the same when
        mirrored, that decides instead.
        """
        channels, *sizes = image_shape
        colour = channels >= 3 and len(sizes) == 2
        side = min(sizes)
        flip = colour if mirrored is None else mirrored
        return cls(flip=flip, translate=round(side / 8) if colour else math.ceil(side / 12))

    def __bool__(self) -> bool:
        return self.flip or self.translate > 0 or self.cutout > 0
