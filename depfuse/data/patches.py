"""Where patches are cut out of photographs and volumes: how large, how many of each, and the places.

The smallest example is a photograph of 100 x 130 pixels, and squares of 64: there is room for two that do not overlap,
and two are cut out anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from depfuse.data.preprocessing import MOST_PIXELS, SIDE
from depfuse.errors import DataError

Crop = int | tuple[int, ...] | Literal["auto"]
STEP = 8  # networks shrink images by powers of two
CROPS = 2000  # altogether where there are fewer photographs, as many as calibration takes by default
FEWEST = 16  # patches altogether, however large they are


def auto_side(lengths: Sequence[int], most: int = SIDE) -> int:
    """Find a side that nine tenths of the lengths have, down to a multiple of `STEP`, and no more than `most`."""
    side = min(most, sorted(lengths)[len(lengths) // 10])
    return side - side % STEP if side >= STEP else side


def total_of(patch: Sequence[int]) -> int:
    """Count the patches that have as many places as `CROPS` squares of `SIDE`: no more than `CROPS`, some in any case.

    What is computed for a patch of a volume is as much as for many squares.
    """
    return max(FEWEST, min(CROPS, CROPS * SIDE**2 // math.prod(patch)))


def draw_starts(
    size: Sequence[int], patch: Sequence[int], bounds: tuple[int, int], generator: torch.Generator
) -> list[tuple[int, ...]]:
    """Draw the first corners of patches in one image, as many as it holds side by side, within bounds (least, most)."""
    least, most = bounds
    fitting = math.prod(length // side for length, side in zip(size, patch, strict=True))
    count = min(most, max(least, fitting))
    axes = [
        torch.randint(max(0, length - side) + 1, (count,), generator=generator).tolist()
        for length, side in zip(size, patch, strict=True)
    ]
    return list(zip(*axes, strict=True))


def check_sides(crop: Sequence[int]) -> None:
    """Raise `DataError` unless every side is possible."""
    if not all(1 <= side <= MOST_PIXELS for side in crop):
        raise DataError(f"`crop={sides(crop)}` must be from 1 to {MOST_PIXELS} pixels a side")


def sides(crop: Sequence[int]) -> str:
    """Write the sides of a patch as users do: 64, or 16,32,32."""
    return ",".join(map(str, crop))
