"""Names of data: built-in data sets, files and folders. Nothing here needs torch."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import DataError

# Of the 1,297 training images, over all pixels, in units of [0, 1].
DIGITS_PREPROCESSING = Preprocessing(mean=(0.3053,), std=(0.3758,))

DOWNLOADED: dict[str, tuple[str, Preprocessing]] = {
    "cifar10": ("CIFAR10", Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))),
    "cifar100": ("CIFAR100", Preprocessing(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))),
    "mnist": ("MNIST", Preprocessing(mean=(0.1307,), std=(0.3081,))),
}

DATA_SETS = ("digits", *DOWNLOADED)
_NAMED = re.compile(r"[A-Za-z][A-Za-z0-9]+:.+", re.DOTALL)  # no letter of a disk


def builtin_preprocessing(name: str) -> Preprocessing:
    """Return the pre-processing of the data set of that name in `DATA_SETS`."""
    return DIGITS_PREPROCESSING if name == "digits" else DOWNLOADED[name][1]


def is_named_set(spec: str | Path) -> bool:
    """Tell whether this is a data set of torchvision and its folder, `NAME:FOLDER`, and no file or folder itself."""
    return _NAMED.fullmatch(str(spec)) is not None and not Path(spec).exists()


def split_name(spec: str) -> tuple[str, str]:
    """Divide `NAME:FOLDER`."""
    name, _, folder = spec.partition(":")
    return name, folder


def check_data_name(spec: str | Path) -> None:
    """Raise `DataError` unless this is a built-in data set, one of torchvision in a folder, or a file or folder."""
    name = str(spec)
    if name in DATA_SETS or Path(spec).is_dir() or Path(spec).is_file():
        return
    if is_named_set(spec):
        kind, folder = split_name(name)
        if folder.startswith("//"):
            raise DataError(f"{name} is an address, and nothing is downloaded: fetch the files, and give their folder")
        if not Path(folder).is_dir():
            raise DataError(f"{name}: there is no folder {folder} with torchvision's {kind}, and nothing is downloaded")
        return
    near = difflib.get_close_matches(name, DATA_SETS, n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"give {', '.join(DATA_SETS)}, torchvision's NAME:FOLDER, a .npz or .npy file, a folder of images, or a"
        " list of their files"
    )
    raise DataError(f"{name} is no data set, file or folder: {hint}")
