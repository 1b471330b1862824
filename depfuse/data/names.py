"""Names of data: built-in data sets, files and folders. Nothing here needs torch."""

from __future__ import annotations

import difflib
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


def builtin_preprocessing(name: str) -> Preprocessing:
    """Return the pre-processing of the data set of that name in `DATA_SETS`."""
    return DIGITS_PREPROCESSING if name == "digits" else DOWNLOADED[name][1]


def check_data_name(spec: str | Path) -> None:
    """Raise `DataError` unless this is the name of a built-in data set, or a file or folder that is there."""
    name = str(spec)
    if name in DATA_SETS or Path(spec).is_dir() or Path(spec).is_file():
        return
    near = difflib.get_close_matches(name, DATA_SETS, n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"give {', '.join(DATA_SETS)}, a .npz or .npy file, a folder of images, or a list of their files"
    )
    raise DataError(f"{name} is no data set, file or folder: {hint}")
