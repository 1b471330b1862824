"""Patches cut out of volumes at random, for networks of maps, with the masks of those that have them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from depfuse.data.draws import order_of_class
from depfuse.data.folders import find_files, has_images
from depfuse.data.memory import GIBIBYTE, calibration_room
from depfuse.data.parts import KINDS, SPLIT_SEED, TEST_SHARE, Part, data_set_of
from depfuse.data.patches import Crop, auto_side, check_sides, draw_starts, sides, total_of
from depfuse.data.preprocessing import SIDE, Preprocessing
from depfuse.data.tensors import DataSet
from depfuse.data.volume_files import Case, find_cases, is_array_file
from depfuse.errors import DataError, DepfuseWarning
from depfuse.text import counted

SIDE_OF_VOLUMES = 32  # of a patch with three sides, unless volumes are smaller
LEAST = 200  # patches altogether, which overlap where the volumes are few


@dataclass(frozen=True)
class _Cut:
    """How patches are cut: their sides, whether the first is left out, as of slices, the least and most per volume."""

    patch: tuple[int, ...]
    flat: bool
    bounds: tuple[int, int]
    preprocessing: Preprocessing


def holds_volumes(root: Path) -> bool:
    """Tell whether a folder has arrays below it, and no images."""
    return not has_images(root) and any(find_files(root, is_array_file).values())


def load_volumes(root: Path, crop: Crop, preprocessing: Preprocessing, seed: int = SPLIT_SEED) -> DataSet:
    """Load patches of the volumes in a folder, and say how many of what size; with masks, where volumes have them.

    Volumes are (C, D, H, W), (D, H, W), (C, H, W) or (H, W), in numbers as networks take them. Each is read once, and
    its patches are held: as many as the volume holds side by side, but `LEAST` of all volumes together, and no more
    than `total_of` or a quarter of the free memory. Where masks are there and no part is for tests, a fifth of the
    volumes is, always the same.

    Parameters
    ----------
    root
        The folder; arrays to any depth below it, and those of train/ and test/ apart, where there are such.
    crop
        Sides of a patch, one for all axes or one each; two for volumes (C, D, H, W) are slices of them. With `auto`
        as many as nine tenths of the volumes have, see `auto_side`. Smaller volumes are left out, which is said.
    preprocessing
        Its mean and standard deviation are in the units of the volumes.
    seed
        Of the places in what networks learn from; those of tests are always the same.

    Raises
    ------
    DataError
        There are no volumes or none is large enough, channels differ, some have masks and others none, or one cannot be
        read or holds numbers that are not finite.
    """
    if preprocessing.size is not None:
        raise DataError(
            f"`size` resizes images, and {root} holds volumes: leave it out, or give the sides of patches as `crop`"
        )
    given = crop if isinstance(crop, tuple) and len(crop) > 1 else None
    found = find_files(root, is_array_file)
    parts = {
        part: [case.laid_out(None if given is None else len(given)) for case in find_cases(root, files)]
        for part, files in found.items()
    }
    every = [case for cases in parts.values() for case in cases]
    if not every:
        raise DataError(f"{root} holds no volumes: they are arrays in .npy or .npz")
    _check_alike(every)
    patch = _patch(crop, every)
    check_sides(patch)
    fits = {part: [case for case in cases if _holds(case, patch)] for part, cases in parts.items()}
    large = [case for cases in fits.values() for case in cases]
    if not large:
        most = ",".join(str(max(case.size[axis] for case in every)) for axis in range(len(every[0].size)))
        raise DataError(
            f"no volume in {root} holds a patch of `crop={sides(patch)}`: give a smaller one, {most} at most"
        )
    small = [case for case in every if not _holds(case, patch)]
    fits = _divided(root, {part: cases for part, cases in fits.items() if cases})
    total, room = total_of(patch), _room(patch, large)
    bounds = -(-min(LEAST, total) // len(large)), -(-min(total, room) // len(large))
    cut = _Cut(patch, len(patch) > 2 and patch[0] == 1 and _is_slices(crop), (min(bounds), bounds[1]), preprocessing)
    made = {
        part: _part(cases, cut, seed if KINDS.get(part.lower(), "train") == "train" else SPLIT_SEED)
        for part, cases in fits.items()
    }
    count = sum(len(part.images) for part in made.values())
    left_out = f"; {counted(len(small), 'smaller one')} left out, such as {small[0].volume.where}" if small else ""
    shape = " x ".join(map(str, patch))
    memory = f"; more do not fit into {calibration_room() / GIBIBYTE:.1f} GiB" if room < total else ""
    warnings.warn(
        f"{root}: {count:,} {'patch' if count == 1 else 'patches'} of {shape} (`crop={sides(patch)}`)"
        f" {'is' if count == 1 else 'are'} cut out of {counted(len(large), 'volume')} at random, by seed"
        f" {seed}{left_out}{memory}",
        DepfuseWarning,
        stacklevel=3,
    )
    whole = made.pop("", None)
    return data_set_of(str(root), made, whole, None, Preprocessing())


def _is_slices(crop: Crop) -> bool:
    return isinstance(crop, tuple) and len(crop) == 2


def _patch(crop: Crop, cases: Sequence[Case]) -> tuple[int, ...]:
    """Settle the sides of a patch, one for each axis of space; slices have one of length one."""
    axes = len(cases[0].size)
    if crop == "auto":
        most = SIDE if axes == 2 else SIDE_OF_VOLUMES
        return tuple(auto_side([case.size[axis] for case in cases], most) for axis in range(axes))
    given = crop if isinstance(crop, tuple) else (crop,)
    given = given * axes if len(given) == 1 else given
    return (1,) * (axes - len(given)) + given


def _holds(case: Case, patch: Sequence[int]) -> bool:
    return all(length >= side for length, side in zip(case.size, patch, strict=True))


def _check_alike(cases: Sequence[Case]) -> None:
    """Raise `DataError` unless all volumes have as many channels and axes."""
    first = cases[0]
    for case in cases:
        if case.channels != first.channels or len(case.size) != len(first.size):
            raise DataError(
                f"{first.volume.where} has shape {first.volume.shape} and {case.volume.where} {case.volume.shape}: give"
                " volumes of as many channels and axes"
            )


def _divided(root: Path, parts: Mapping[str, Sequence[Case]]) -> dict[str, list[Case]]:
    """Hold out volumes with masks to score networks by, where no part is for that, and say so."""
    for cases in parts.values():
        lacking = [case for case in cases if case.mask is None]
        if 0 < len(lacking) < len(cases):
            raise DataError(f"{lacking[0].volume.where} has no mask, and others have: give one for each, or none")
    cases = list(parts.get("", ()))
    if len(cases) < 2 or cases[0].mask is None:
        alone = len(cases) == 1 and cases[0].mask is not None  # its patches overlap
        return {"train" if alone else part: list(own) for part, own in parts.items()}
    held = set(order_of_class(len(cases), SPLIT_SEED, 0)[: max(1, round(TEST_SHARE * len(cases)))].tolist())
    warnings.warn(
        f"{root} has no part for tests: {len(held)} of its {len(cases)} volumes, drawn by seed {SPLIT_SEED}, are that",
        DepfuseWarning,
        stacklevel=4,
    )
    return {
        "train": [case for number, case in enumerate(cases) if number not in held],
        "test": [case for number, case in enumerate(cases) if number in held],
    }


def _room(patch: Sequence[int], cases: Sequence[Case]) -> int:
    """Count the patches that memory may hold."""
    each = math.prod(patch) * (4 * cases[0].channels + 8 * any(case.mask is not None for case in cases))
    room = calibration_room() / each
    return max(len(cases), int(room)) if math.isfinite(room) else total_of(patch)


def _part(cases: Sequence[Case], cut: _Cut, seed: int) -> Part:
    """Read the volumes of a part, one after the other, and cut out patches."""
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    sources: list[int] = []
    for number, case in enumerate(cases):
        volume = _normalised(torch.from_numpy(case.read_volume()), cut.preprocessing)
        mask = None if case.mask is None else torch.from_numpy(case.read_mask())
        for start in draw_starts(case.size, cut.patch, cut.bounds, generator):
            box = tuple(slice(first, first + side) for first, side in zip(start, cut.patch, strict=True))
            images.append(_squeezed(volume[(slice(None), *box)], cut.flat, 1).clone())
            labels += [] if mask is None else [_squeezed(mask[box], cut.flat, 0).clone()]
            sources.append(number)
    return Part(torch.stack(images), torch.stack(labels) if labels else None, torch.tensor(sources))


def _squeezed(patch: Tensor, flat: bool, axis: int) -> Tensor:
    return patch.squeeze(axis) if flat else patch


def _normalised(volume: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Subtract the means of the channels and divide by their standard deviations, where they are given."""
    preprocessing.check_channels(len(volume))
    for values, change in ((preprocessing.mean, torch.sub), (preprocessing.std, torch.div)):
        if values is not None:
            volume = change(volume, torch.tensor(values).reshape(-1, *[1] * (volume.dim() - 1)))
    return volume
