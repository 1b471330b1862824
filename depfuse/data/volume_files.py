"""Volumes in .npy and .npz files of a folder, one case in each, with their masks.

The smallest example is what segmentation frameworks leave behind: `case_1.npz` with the arrays `data` (C, D, H, W) and
`seg` (1, D, H, W); or `case_1.npy` and `case_1_seg.npy`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depfuse.data.array_files import MAGIC, ArrayHeader, header_of_npy, headers_of_npz
from depfuse.data.arrays import IMAGES, LABELS
from depfuse.data.folders import MASKS
from depfuse.data.masks import MASK_ENDINGS
from depfuse.data.memory import too_much
from depfuse.errors import DataError
from depfuse.tasks.label_kinds import IGNORED
from depfuse.text import first_line

ENDINGS = (".npy", ".npz")
MASK_NAMES = ("seg", "segmentation", "mask", "masks", *LABELS)  # of arrays beside a volume
FEW_CHANNELS = 4  # a first axis that is longer is one of space, where nothing else says what it is


@dataclass(frozen=True)
class Case:
    """A volume, and its mask where it has one.

    Attributes
    ----------
    volume, mask
        Arrays in files.
    channels
        Of the volume; 1 where it has no axis of channels.
    size
        Lengths of the axes of space.
    """

    volume: ArrayHeader
    mask: ArrayHeader | None
    channels: int = 1
    size: tuple[int, ...] = ()

    def laid_out(self, sides: int | None) -> Case:
        """Find out which axes are those of space.

        Parameters
        ----------
        sides
            The number of sides of patches; None where the arrays have to say it: the mask, or else their number of
            axes: of four the first one is of channels, of three where it has up to `FEW_CHANNELS`.

        Raises
        ------
        DataError
            The volume has too few axes or too many, or another size than its mask.
        """
        shape = self.volume.shape
        mask = None if self.mask is None else _without_ones(self.mask.shape, len(shape))
        axes = len(shape)
        if mask is not None and mask in (shape, shape[1:]):
            space = len(mask)
        elif sides is not None:
            space = sides if axes == sides else axes - 1
        else:
            space = {2: 2, 3: 2 if shape[0] <= FEW_CHANNELS else 3}.get(axes, axes - 1)
        if space not in (2, 3) or axes - space not in (0, 1) or (sides is not None and sides > space):
            wanted = f"patches have {sides} sides" if sides is not None else "volumes are (C, D, H, W) or (C, H, W)"
            raise DataError(f"{self.volume.where} has shape {shape}, and {wanted}: give arrays of such a shape")
        size = shape[axes - space :]
        if self.mask is not None and mask != size:
            last = "move the channels, which are the last axis, to the front"
            wanted = last if mask == shape[:-1] else "give masks of the volumes' size"
            raise DataError(
                f"{self.mask.where} has shape {self.mask.shape} and its volume {self.volume.where} {shape}: {wanted}"
            )
        return replace(self, channels=shape[0] if axes > space else 1, size=size)

    def read_volume(self) -> NDArray[np.float32]:
        """Read the volume (C, ...).

        Raises
        ------
        DataError
            It cannot be read, or a number in it is not finite.
        """
        read = _read(self.volume).astype(np.float32, copy=False)
        if not np.isfinite(read).all():
            raise DataError(f"{self.volume.where} holds numbers that are not finite: leave it out, or mend it")
        return read.reshape(self.channels, *self.size)

    def read_mask(self) -> NDArray[np.int64]:
        """Read the classes of places (...); those of -1, outside of what was scanned, are `IGNORED`.

        Raises
        ------
        DataError
            It cannot be read, or holds what is no class.
        """
        assert self.mask is not None
        read = _read(self.mask).reshape(self.size)
        if read.dtype.kind == "f" and np.isfinite(read).all() and (read == np.rint(read)).all():
            read = read.astype(np.int64)
        if read.dtype.kind not in "uib" or int(read.min(initial=0)) < -1:
            raise DataError(f"{self.mask.where} holds what is no class: the numbers in masks are 0, 1, 2, ...")
        classes: NDArray[np.int64] = np.where(read == -1, IGNORED, read).astype(np.int64)
        return classes


def is_array_file(name: str) -> bool:
    """Tell by its name whether a file holds arrays."""
    return name.lower().endswith(ENDINGS)


def find_cases(root: Path, files: Sequence[str]) -> list[Case]:
    """Pair the volumes among some files below a folder with their masks, in the order of the volumes' names.

    Masks are arrays `MASK_NAMES` beside the volume in its .npz, files whose names end as `MASK_ENDINGS` say, and those
    in a folder of `MASKS`. Of a .npz and the .npy that was unpacked of it the latter is read.

    Raises
    ------
    DataError
        A file cannot be read, holds no volume or several, or is a mask without a volume.
    """
    named = {_stem(path): path for path in sorted(files, key=lambda path: path.lower().endswith(".npy"))}
    masks = {stem: owner for stem in named if (owner := _owner(root, stem, named)) is not None}
    of_volume: dict[str, str] = {}
    for stem, owner in masks.items():
        if owner not in named:
            raise DataError(
                f"{named[stem]} is a mask without a volume {os.path.basename(owner)}.npy: give one for each"
            )
        of_volume[owner] = stem
    packed = {_stem(path): path for path in files if path.lower().endswith(".npz")}
    cases = []
    for stem in sorted(set(named) - set(masks)):
        volume, beside = _arrays_of(Path(named[stem]))
        if stem in of_volume:
            beside = _only(Path(named[of_volume[stem]]))
        elif beside is None and packed.get(stem, named[stem]) != named[stem]:
            beside = _arrays_of(Path(packed[stem]))[1]
        cases.append(Case(volume, beside))
    whole = {case.volume.dtype.kind in "iub": case for case in reversed(cases)}
    if len(whole) > 1:
        raise DataError(
            f"{whole[True].volume.where} holds whole numbers and {whole[False].volume.where} does not: is one a mask?"
            " call it CASE_seg.npy, or put masks into a folder masks"
        )
    return cases


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _owner(root: Path, stem: str, named: dict[str, str]) -> str | None:
    """Return the volume, without its ending, that a file is the mask of; None where it is no mask."""
    parts = list(Path(os.path.relpath(stem, root)).parts)
    places = [place for place, part in enumerate(parts[:-1]) if part.lower() in MASKS]
    ending = next((own for own in MASK_ENDINGS if own and parts[-1].lower().endswith(own)), "")
    if not places:
        owner = stem[: -len(ending)] if ending else ""
        return owner if ending and (owner in named or ending == "_seg") else None
    for own in named:
        other = list(Path(os.path.relpath(own, root)).parts)
        alike = len(other) == len(parts) and own != stem
        differ = [place for place in range(len(parts) - 1) if alike and other[place] != parts[place]]
        if differ == places[-1:] and other[-1] in (parts[-1], parts[-1][: len(parts[-1]) - len(ending)]):
            return own
    return os.path.join(root, *parts[: places[-1]], "images", parts[-1])


def _arrays_of(path: Path) -> tuple[ArrayHeader, ArrayHeader | None]:
    """Find the volume in a file, and the mask beside it, if there is one."""
    headers = _headers(path)
    masks = [name for name in headers if name.lower() in MASK_NAMES]
    others = [name for name in headers if name not in masks and _may_be_volume(name, headers[name])]
    volumes = [name for name in others if name.lower() in IMAGES] or others
    if len(volumes) != 1 or len(masks) > 1:
        what = f"holds {' and '.join((volumes if len(volumes) > 1 else masks)[:2])}" if headers else "is empty"
        found = "holds no volume" if not volumes else what
        raise DataError(f"{path} {found}: call the array of its volume data, and that of its mask seg")
    return _of_numbers(headers[volumes[0]]), _of_numbers(headers[masks[0]]) if masks else None


def _may_be_volume(name: str, header: ArrayHeader) -> bool:
    """Tell whether an array has axes; of pickled objects, whether it is called a volume, as what it is is not known."""
    return name.lower() in IMAGES if header.dtype.hasobject else len(header.shape) > 1


def _only(path: Path) -> ArrayHeader:
    """Find the only array of a file."""
    headers = _headers(path)
    if len(headers) != 1:
        raise DataError(f"{path} holds {' and '.join(list(headers)[:2])}, and a mask is one array")
    return _of_numbers(next(iter(headers.values())))


def _headers(path: Path) -> dict[str, ArrayHeader]:
    try:
        with path.open("rb") as file:
            single = file.read(len(MAGIC)) == MAGIC
        headers = {"": header_of_npy(path)} if single else headers_of_npz(path)
    except DataError:
        raise
    except Exception as error:  # a damaged archive or header may raise anything
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    return headers


def _of_numbers(header: ArrayHeader) -> ArrayHeader:
    """Pass the header of a volume or mask; what else lies beside them, such as a trainer's properties, is not read."""
    if header.dtype.hasobject:
        raise DataError(f"{header.where} cannot be read: it holds pickled objects")
    if header.dtype.kind not in "uifb":
        raise DataError(f"{header.where} is {header.dtype}: volumes and masks are numbers")
    return header


def _without_ones(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Drop the first axis of a mask where it has as many axes as its volume, and a first of length one."""
    return shape[1:] if len(shape) == axes and shape[:1] == (1,) else shape


def _read(header: ArrayHeader) -> NDArray[Any]:
    if excess := too_much(2 * header.nbytes):
        raise DataError(f"{header.where} needs {excess}: give smaller volumes")
    try:
        return header.read()
    except Exception as error:  # a damaged archive may raise anything
        raise DataError(f"{header.where} cannot be read: {first_line(error)}") from None
