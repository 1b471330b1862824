"""Preprocessing: what happens to an image between its bytes and the network. A description, which needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from depfuse.errors import DataError

MOST_PIXELS = 4096  # a side
SIDE = 64  # pixels of squares cut out of photographs at random, unless these are smaller
MOST_TIMES = 64  # as many pixels a side as an image had


def box_of_shape(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Find the largest part (top, left, height, width) in the middle of an image that has the proportions of a size.

    What remains when the image is resized until it covers the size, and its middle is cropped.
    """
    inner_height = min(height, max(1, round(width * size[0] / size[1])))
    inner_width = min(width, max(1, round(height * size[1] / size[0])))
    return (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width


class Preprocessing(BaseModel):
    """Bytes to floats: scale to [0, 1], resize and crop, then (x - mean) / std per channel.

    Attributes
    ----------
    size
        (height, width) of the network's images: others are resized, antialiased, until they cover it, and their middle
        is cropped; files bicubic, arrays bilinear. ``None`` keeps theirs.
    mean, std
        One value for all channels or one per channel, in units of [0, 1]; ``None`` leaves them out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _values_make_sense(self) -> Preprocessing:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size {self.size} must be positive")
        if self.size is not None and max(self.size) > MOST_PIXELS:
            raise ValueError(f"size {self.size} is more than {MOST_PIXELS} pixels a side, which no network takes")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (values and all(math.isfinite(v) for v in values)):
                raise ValueError(f"{name} {values} must be one or more finite numbers")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give as many of each")
        return self

    @classmethod
    def create(
        cls,
        size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocessing:
        """Build one from plain sequences; raise `DataError` where they contradict one another."""
        try:
            return cls.model_validate({"size": size, "mean": mean, "std": std})
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise DataError(f"pre-processing: {message}") from None

    @property
    def of_colour(self) -> bool:
        """Whether mean or std have a value for red, green and blue each."""
        return any(values is not None and len(values) == 3 for values in (self.mean, self.std))

    def check_size(self, height: int, width: int) -> None:
        """Raise `DataError` where images (height, width) would be enlarged more than `MOST_TIMES` times a side."""
        if self.size is not None and max(self.size[0] / height, self.size[1] / width) > MOST_TIMES:
            raise DataError(
                f"pre-processing: images of {height} x {width} pixels would be resized to {self.size[0]} x"
                f" {self.size[1]}, more than {MOST_TIMES} times as many a side"
            )

    def check_channels(self, channels: int) -> None:
        """Raise `DataError` unless mean and std suit images of `channels` channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                what, wanted = ("1 channel", "1") if channels == 1 else (f"{channels} channels", f"1 or {channels}")
                raise DataError(f"{name} has {len(values)} values, but the images have {what}: give {wanted}")
