"""Squares cut out of photographs at random, for networks that give pictures, whatever size a photograph has.

The smallest example is a folder of one photograph of 100 x 130 pixels, and squares of 64: there is room for two that
do not overlap, side by side, and two are cut out anywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from depfuse.data.folders import find_photographs
from depfuse.data.images import is_grey_mode, opened, read_image
from depfuse.data.parts import KINDS, SPLIT_SEED, Part, data_set_of
from depfuse.data.patches import CROPS, Crop, auto_side, check_sides, draw_starts, sides
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.stored_images import StoredImages
from depfuse.data.tensors import DataSet
from depfuse.data.unread import Unread
from depfuse.errors import DataError, DepfuseWarning
from depfuse.text import counted


@dataclass(frozen=True, eq=False)
class Crops(StoredImages):
    """Squares of photographs that stay in their files until they are needed.

    Attributes
    ----------
    boxes
        Of each, its file, the first row and the first column.
    shape
        (N, C, S, S).
    """

    boxes: Sequence[tuple[str, int, int]]
    shape: tuple[int, int, int, int]

    @property
    def example(self) -> str:
        """The first one's photograph."""
        return self.boxes[0][0]

    @property
    def photographs(self) -> Tensor:
        """Number (N,) of the photograph that each is cut out of, in the order of the first of each."""
        numbers = {path: number for number, path in enumerate(dict.fromkeys(path for path, _, _ in self.boxes))}
        return torch.tensor([numbers[path] for path, _, _ in self.boxes])

    def take(self, index: slice | Tensor) -> Crops:
        """Select squares by number (n,), in that order, or a range of them; nothing is decoded."""
        if isinstance(index, slice):
            boxes = self.boxes[index]
        else:
            boxes = [self.boxes[number] for number in torch.arange(len(self))[index.cpu()].tolist()]
        return Crops(boxes, (len(boxes), *self.shape[1:]))

    def fill(self, images: Tensor) -> None:
        """Decode each photograph once, and cut its squares out of it; see `StoredImages.fill`."""
        _, channels, side, _ = self.shape
        of_photo: dict[str, list[int]] = {}
        for number, (path, _, _) in enumerate(self.boxes):
            of_photo.setdefault(path, []).append(number)
        for path, numbers in of_photo.items():
            pixels = read_image(Path(path), grey=channels == 1)
            planes = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)
            for number in numbers:
                _, top, left = self.boxes[number]
                cut = planes[:, top : top + side, left : left + side]
                if cut.shape[1:] != (side, side):
                    raise DataError(f"{path} has become smaller since its size was read: start again")
                images[number] = cut


def load_crops(root: Path, crop: Crop, preprocessing: Preprocessing, seed: int = SPLIT_SEED) -> DataSet:
    """Load squares of the photographs in a folder, without labels, and say how many of what size.

    What is not read of the photographs is said as well (`Unread`).
    Of each photograph as many are drawn as its area holds, but no more than bring all photographs to `CROPS`.

    Parameters
    ----------
    root
        The folder; images to any depth below it, and those of train/ and test/ apart, where there are such.
    crop
        Pixels a side. With `auto` as many as nine tenths of the photographs have, see `auto_side`. Smaller photographs
        are left out, which is said.
    preprocessing
        What happens to the squares before a network.
    seed
        Of the places in what networks learn from; those of test/ are always the same.

    Raises
    ------
    DataError
        There are no images or none is large enough, or one cannot be read.
    """
    parts = find_photographs(root)
    sizes: dict[str, tuple[int, int]] = {}
    grey, unread = 0, Unread()
    for path in [path for files in parts.values() for path in files]:
        with opened(Path(path)) as image:
            sizes[path] = (image.height, image.width)
            grey += is_grey_mode(image.mode)
            unread.note(path, image)
    unread.say(len(sizes), root)
    side = auto_side([min(size) for size in sizes.values()]) if crop == "auto" else _square(crop)
    small = [path for path, size in sizes.items() if min(size) < side]
    if len(small) == len(sizes):
        most = max(min(size) for size in sizes.values())
        raise DataError(f"no image in {root} has {side} x {side} pixels: give a smaller `crop`, {most} at most")
    channels = 1 if not preprocessing.of_colour and 2 * grey > len(sizes) else 3
    most = -(-CROPS // (len(sizes) - len(small)))
    drawn = {}
    for part, files in parts.items():
        generator = torch.Generator().manual_seed(seed if KINDS.get(part.lower(), "train") == "train" else SPLIT_SEED)
        boxes = [
            (path, top, left)
            for path in files
            for top, left in draw_starts(sizes[path], (side, side), (0, most), generator)
        ]
        crops = Crops(boxes, (len(boxes), channels, side, side))
        drawn[part] = Part(crops, None, crops.photographs)
    count = sum(len(part.images) for part in drawn.values())
    left_out = f"; {counted(len(small), 'smaller one')} left out, such as {small[0]}" if small else ""
    warnings.warn(
        f"{root}: {counted(count, 'square')} of {side} x {side} pixels (`crop={side}`)"
        f" {'is' if count == 1 else 'are'} cut out of {counted(len(sizes) - len(small), 'photograph')} at random, by"
        f" seed {seed}{left_out}",
        DepfuseWarning,
        stacklevel=3,
    )
    whole = drawn.pop("", None)
    filled = {part: own for part, own in drawn.items() if len(own.images)}
    return data_set_of(str(root), filled, whole, None, preprocessing)


def _square(crop: int | tuple[int, ...]) -> int:
    """Take the side of a square; raise `DataError` where it is none."""
    given = (crop,) if isinstance(crop, int) else crop
    check_sides(given)
    if len(given) > 2 or len(set(given)) > 1:
        raise DataError(f"`crop={sides(given)}`: squares are cut out of photographs: give one number, their side")
    return given[0]
