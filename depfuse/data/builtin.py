"""Built-in data sets by name: digits, embedded, and three that torchvision downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from depfuse.data.names import DIGITS_PREPROCESSING, DOWNLOADED
from depfuse.data.tensors import DataSet, Split, checked_data_set
from depfuse.errors import DataError
from depfuse.text import first_line

DIGITS = Path(__file__).with_name("digits.npz")


def load_builtin(name: str, root: Path, *, download: bool = True) -> DataSet:
    """Load the data set of that name in `DATA_SETS`, downloaded under `root` where it is not embedded."""
    return load_digits() if name == "digits" else load_torchvision(name, root, download=download)


def load_digits() -> DataSet:
    """Load 1,797 handwritten digits of 8 x 8 pixels, grey values 0..16 scaled to 0..255.

    A fixed stratified split: 1,297 training and 500 test images. They are those of scikit-learn (`load_digits`, and
    `train_test_split` with seed 0), whose import would take longer than a fusion of small networks.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (CC BY
    4.0); its test images.
    """
    with np.load(DIGITS, allow_pickle=False) as arrays:
        first, second = (
            Split(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)))
            for part in ("train", "test")
        )
    return checked_data_set("digits", tuple(str(d) for d in range(10)), first, second, DIGITS_PREPROCESSING)


def load_torchvision(name: str, root: Path, *, download: bool = True) -> DataSet:
    """Load a data set that torchvision downloads under `root`, with its own progress bar.

    Raises
    ------
    DataError
        The data set is not under `root`, and cannot or must not be downloaded.
    """
    from torchvision import datasets

    kind, preprocessing = DOWNLOADED[name]
    try:
        parts = [getattr(datasets, kind)(str(root), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a damaged file is a RuntimeError
        if not download:
            raise DataError(
                f"{name}, which the files name, is not in {root}, and is downloaded only if you name it: "
                f"give `load_data({name!r})`, or the folder where it is"
            ) from None
        reason = first_line(error)
        raise DataError(
            f"{name} cannot be downloaded to {root} ({reason}): go online, or give a .npz file "
            f"with x_train, y_train, x_test and y_test as the data"
        ) from None
    classes = tuple(str(c) for c in parts[0].classes)
    return checked_data_set(name, classes, _as_split(parts[0]), _as_split(parts[1]), preprocessing)


def _as_split(part: Any) -> Split:
    images = torch.as_tensor(part.data)
    # MNIST is (N, H, W), CIFAR (N, H, W, C).
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.as_tensor(part.targets, dtype=torch.int64))
