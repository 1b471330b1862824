"""A user's own data: one .npz file, or a folder of images by class."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depfuse.data.images import image_files, is_grey, is_hidden, read_image
from depfuse.data.memory import too_much
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import MOST_CLASSES, DataSet, Split, checked_data_set
from depfuse.errors import DataError, DepfuseWarning

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_CLASSES = "classes"
_ONE_ARRAY = f"{{}} cannot be read as a .npz: it holds one array, and {', '.join(_KEYS)} are needed"
_COPIES = 2  # of an array that are held at once while it is converted


def load_npz(path: Path, preprocessing: Preprocessing) -> DataSet:
    """Load a .npz file with x_train, y_train, x_test, y_test and optionally `classes`, their names.

    Images are (N, H, W), (N, C, H, W), or (N, H, W, C) with a C of 1, 3 or 4 that is less than H; they are
    uint8, or floats in [0, 1], which are rounded to 255ths. Labels are whole numbers (N,) from 0.

    Raises
    ------
    DataError
        The file cannot be read without running code, does not fit into memory, or its arrays are not as above.
    """
    try:
        _check_arrays(path)
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(_ONE_ARRAY.format(path))
        with loaded as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise DataError(f"{path} has no {', '.join(missing)}: a .npz needs {', '.join(_KEYS)}")
            arrays = {key: file[key] for key in (*_KEYS, *({_CLASSES} & set(file.files)))}
    except DataError:
        raise
    except ValueError as error:
        reason = "it holds pickled objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a .npz: {reason}") from None
    except Exception as error:  # a damaged archive or header may raise anything
        reason = (str(error).splitlines() or [""])[0] or "it is cut off"
        raise DataError(f"{path} cannot be read as a .npz: {reason}") from None
    splits = [
        Split(
            _as_images(arrays[f"x_{part}"], f"{path}: x_{part}"),
            _as_labels(arrays[f"y_{part}"], f"{path}: y_{part}"),
        )
        for part in ("train", "test")
    ]
    classes = _as_names(arrays[_CLASSES], f"{path}: {_CLASSES}") if _CLASSES in arrays else None
    return checked_data_set(str(path), classes, splits[0], splits[1], preprocessing)


def _check_arrays(path: Path) -> None:
    """Refuse an archive whose arrays are truncated or exceed free memory, before any of them is read."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":  # numpy would read all of it
                raise DataError(_ONE_ARRAY.format(path))
        return
    needed = 0
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in (*_KEYS, _CLASSES):
                continue
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                old = version == (1, 0)
                header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, _, kind = header(member)
                size = math.prod(shape) * kind.itemsize
                if not kind.hasobject and member.tell() + size > entry.file_size:
                    raise DataError(
                        f"{path} cannot be read as a .npz: {name} is said to have shape {shape}, but is cut off"
                    )
            needed += size
    if excess := too_much(_COPIES * needed):
        raise DataError(f"{path} needs {excess}: give fewer images")


def load_folder(root: Path, preprocessing: Preprocessing) -> DataSet:
    """Load a folder with train/CLASS/IMAGE and test/CLASS/IMAGE; classes in the order of their names.

    Images of different sizes are resized here where the pre-processing has a size. All of them are read as grey where
    most are, with a warning where some are not, and as RGB otherwise. Hidden files and folders are skipped.

    Raises
    ------
    DataError
        A part, a class or an image is missing or cannot be read, sizes differ, or memory does not suffice.
    """
    names: dict[str, list[str]] = {}
    for part in ("train", "test"):
        folder = root / part
        children = folder.iterdir() if folder.is_dir() else iter(())
        names[part] = sorted(path.name for path in children if path.is_dir() and not is_hidden(path))
        if not names[part]:
            raise DataError(f"{root} has no images by class under {part}/: it needs train/CLASS/*.png and test/CLASS/*")
    unknown = sorted(set(names["test"]) - set(names["train"]))
    if unknown:
        raise DataError(f"{root}: test class {unknown[0]} has no folder under train/")
    files = {
        part: [
            (file, label)
            for label, name in enumerate(names["train"])
            if (root / part / name).is_dir()
            for file in image_files(root / part / name)
        ]
        for part in ("train", "test")
    }
    colour = [file for part in files.values() for file, _ in part if not is_grey(file)]
    count = sum(map(len, files.values()))
    grey = 2 * len(colour) < count
    if grey and colour:
        warnings.warn(
            f"{len(colour)} of {count} images in {root} are in colour, such as {colour[0].relative_to(root)}: "
            "they are taken as grey, as most are",
            DepfuseWarning,
            stacklevel=2,
        )
    train, test = (_read_images(files[part], grey, preprocessing, count) for part in ("train", "test"))
    return checked_data_set(str(root), tuple(names["train"]), train, test, preprocessing)


def _read_images(files: list[tuple[Path, int]], grey: bool, preprocessing: Preprocessing, count: int) -> Split:
    pixels: list[NDArray[np.uint8]] = []
    for file, _ in files:
        pixels.append(read_image(file, grey=grey, size=preprocessing.size))
        if pixels[-1].shape != pixels[0].shape:
            raise DataError(
                f"{file} is {pixels[-1].shape[1]} x {pixels[-1].shape[0]} pixels and {files[0][0]} "
                f"{pixels[0].shape[1]} x {pixels[0].shape[0]}: scale them all to one size, "
                "or give load_data one, size=(height, width)"
            )
        if len(pixels) == 1 and (excess := too_much(_COPIES * count * pixels[0].size)):
            raise DataError(f"{count} images as large as {file} need {excess}: give fewer or smaller ones")
    stacked = np.stack(pixels) if pixels else np.zeros((0, 1, 1) if grey else (0, 1, 1, 3), np.uint8)
    by_channel = stacked[:, None] if grey else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Split(torch.from_numpy(by_channel), labels)


def _as_images(array: NDArray[Any], where: str) -> Tensor:
    """Convert any of the accepted layouts to (N, C, H, W) uint8."""
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
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{where} holds label {int(array.max())}: labels are 0, 1, 2, ...")
    return torch.from_numpy(array.astype(np.int64))


def _as_names(array: NDArray[Any], where: str) -> tuple[str, ...]:
    if array.ndim != 1 or len(array) > MOST_CLASSES:
        raise DataError(
            f"{where} has shape {array.shape}: names of classes are one list, of shape (K,), and at most {MOST_CLASSES}"
        )
    return tuple(str(name, "utf-8", "replace") if isinstance(name, bytes) else str(name) for name in array.tolist())
