"""Loading of a data set by the name or path that the user gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from depfuse.data.arrays import load_arrays
from depfuse.data.builtin import load_builtin
from depfuse.data.crops import load_crops
from depfuse.data.folders import load_folder
from depfuse.data.images import is_image
from depfuse.data.lists import ENDINGS, load_list
from depfuse.data.names import DATA_SETS, builtin_preprocessing, check_data_name, is_named_set, split_name
from depfuse.data.parts import SPLIT_SEED
from depfuse.data.patches import Crop
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet
from depfuse.data.torchvision_sets import load_torchvision_set
from depfuse.data.volumes import holds_volumes, load_volumes
from depfuse.errors import DataError


def load_data(
    spec: str | Path,
    *,
    root: Path = Path("data"),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    crop: Crop | None = None,
    seed: int = SPLIT_SEED,
    download: bool = True,
) -> DataSet:
    """Load a data set by name or from the user's own files.

    Parameters
    ----------
    spec
        A name in `DATA_SETS`; a data set of torchvision and its folder, such as ``"Food101:/data"``; the path of a .npz
        or .npy file (see `load_arrays`), of a folder of images (see `load_folder`), or of a list of files (see
        `load_list`).
    root
        Folder of downloaded data sets.
    mean, std, size
        Override that part of the data set's pre-processing; a .npz file or a folder has none of its
        own. `size` is (height, width), to which images are resized and cropped.
    crop
        Cut squares of that many pixels a side out of the images of a folder at random, which then may have any size;
        `auto` finds a side (see `load_crops`). There are no labels then. Of a folder of volumes patches are cut in any
        case, by default of a size that fits (see `load_volumes`); several numbers are the sides of a patch.
    seed
        Of the places where they are cut out.
    download
        True if a data set that is not under `root` may be downloaded.

    Raises
    ------
    DataError
        The data are missing, cannot be read, or contradict themselves.
    """
    check_data_name(spec)
    overrides = Preprocessing.create(size=size, mean=mean, std=std)
    name = str(spec)
    if crop is not None:
        if not Path(spec).is_dir():
            raise DataError(f"`crop` cuts squares out of the images of a folder, and {name} is none: leave it out")
        if size is not None:
            raise DataError("`size` resizes images and `crop` cuts squares out of them: give one of the two")
        return (load_volumes if holds_volumes(Path(spec)) else load_crops)(Path(spec), crop, overrides, seed)
    if name in DATA_SETS:
        data = load_builtin(name, root, download=download)
        merged = _merged(overrides, data.preprocessing)
        merged.check_channels(data.train.images.shape[1])
        merged.check_size(*data.train.images.shape[2:])
        return dataclasses.replace(data, preprocessing=merged)
    if is_named_set(spec):
        known = split_name(name)[0].lower()
        return load_torchvision_set(
            name, _merged(overrides, builtin_preprocessing(known)) if known in DATA_SETS else overrides
        )
    path = Path(spec)
    if path.is_dir():
        return load_volumes(path, "auto", overrides, seed) if holds_volumes(path) else load_folder(path, overrides)
    if path.suffix.lower() in ENDINGS:
        return load_list(path, overrides)
    if is_image(path.name):
        raise DataError(f"{path} is one image, and several are needed: give its folder, or a list of files")
    return load_arrays(path, overrides)


def _merged(first: Preprocessing, default: Preprocessing) -> Preprocessing:
    return Preprocessing.create(
        size=first.size or default.size, mean=first.mean or default.mean, std=first.std or default.std
    )
