"""A user's own data: one .npz file, or a folder of images by class."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet, Split, checked_data_set
from depfuse.errors import DataError

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def load_npz(path: Path, preprocessing: Preprocessing) -> DataSet:
    """Load a .npz file with x_train, y_train, x_test, y_test and, if it likes, names in `classes`.

    Images are (N, H, W), (N, C, H, W), or (N, H, W, C) with a C of 1, 3 or 4 that is less than H; they are
    uint8, or floats in [0, 1], which are rounded to 255ths. Labels are whole numbers (N,) from 0.

    Raises
    ------
    DataError
        The file cannot be read without running code, or the arrays are not as above.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} cannot be read as a .npz: it holds one array, and {', '.join(_KEYS)} are needed")
        with loaded as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise DataError(f"{path} has no {', '.join(missing)}: a .npz needs {', '.join(_KEYS)}")
            arrays = {key: file[key] for key in (*_KEYS, *({"classes"} & set(file.files)))}
    except DataError:
        raise
    except ValueError as error:
        reason = "it holds pickled objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a .npz: {reason}") from None
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{path} cannot be read as a .npz: {error or 'it is cut off'}") from None
    splits = [
        Split(
            _as_images(arrays[f"x_{part}"], f"{path}: x_{part}"),
            _as_labels(arrays[f"y_{part}"], f"{path}: y_{part}"),
        )
        for part in ("train", "test")
    ]
    classes = tuple(str(c) for c in arrays["classes"]) if "classes" in arrays else None
    return checked_data_set(str(path), classes, splits[0], splits[1], preprocessing)


def load_folder(root: Path, preprocessing: Preprocessing) -> DataSet:
    """Load a folder with train/CLASS/IMAGE and test/CLASS/IMAGE; classes in the order of their names.

    Images of different sizes are resized here where the pre-processing has a size. The images are
    grey where all of them are, and RGB otherwise.

    Raises
    ------
    DataError
        A part, a class or an image is missing or cannot be read, or sizes differ.
    """
    names: dict[str, list[str]] = {}
    for part in ("train", "test"):
        folder = root / part
        names[part] = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        if not names[part]:
            raise DataError(f"{root} has no images by class under {part}/: it needs train/CLASS/*.png and test/CLASS/*")
    unknown = sorted(set(names["test"]) - set(names["train"]))
    if unknown:
        raise DataError(f"{root}: test class {unknown[0]} has no folder under train/")
    files = {
        part: [
            (file, label)
            for label, name in enumerate(names["train"])
            for file in sorted((root / part / name).glob("*"))
            if file.suffix.lower() in _IMAGE_SUFFIXES
        ]
        for part in ("train", "test")
    }
    grey = all(_open(file).mode in ("L", "1", "I;16") for part in files.values() for file, _ in part)
    train, test = (_read_images(files[part], "L" if grey else "RGB", preprocessing) for part in ("train", "test"))
    return checked_data_set(str(root), tuple(names["train"]), train, test, preprocessing)


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}") from None


def _read_images(files: list[tuple[Path, int]], mode: str, preprocessing: Preprocessing) -> Split:
    pixels: list[NDArray[np.uint8]] = []
    for file, _ in files:
        with _open(file) as image:
            try:
                converted = image.convert(mode)
            except OSError as error:
                raise DataError(f"{file} cannot be read as an image: {error}") from None
        if preprocessing.size is not None:
            height, width = preprocessing.size
            converted = converted.resize((width, height), Image.Resampling.BILINEAR)
        pixels.append(np.asarray(converted, np.uint8))
        if pixels[-1].shape != pixels[0].shape:
            raise DataError(
                f"{file} is {pixels[-1].shape[1]} x {pixels[-1].shape[0]} pixels and {files[0][0]} "
                f"{pixels[0].shape[1]} x {pixels[0].shape[0]}: give one size for all of them with --size"
            )
    stacked = np.stack(pixels) if pixels else np.zeros((0, 1, 1) if mode == "L" else (0, 1, 1, 3), np.uint8)
    by_channel = stacked[:, None] if mode == "L" else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Split(torch.from_numpy(by_channel), labels)


def _as_images(array: NDArray[Any], where: str) -> Tensor:
    """Any of the accepted layouts -> (N, C, H, W) uint8."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3, 4) and array.shape[3] < array.shape[1]:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4:
        raise DataError(f"{where} has shape {array.shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise DataError(f"{where} holds floats outside [0, 1]: give uint8 images, or scale them to [0, 1]")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"{where} is {array.dtype}: images are uint8, or floats in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(array))


def _as_labels(array: NDArray[Any], where: str) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{where} is {array.dtype} of shape {array.shape}: labels are whole numbers of shape (N,)")
    return torch.from_numpy(array.astype(np.int64))
