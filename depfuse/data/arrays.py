"""Images in arrays: a .npz file of one or several, or a .npy file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depfuse.data.array_files import MAGIC, ArrayHeader, header_of_npy, headers_of_npz, read_images
from depfuse.data.memory import too_much
from depfuse.data.parts import KINDS, Part, data_set_of
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import MOST_CLASSES, DataSet
from depfuse.errors import DataError
from depfuse.tasks.label_kinds import IGNORED, NO_CLASS

IMAGES = ("x", "images", "image", "imgs", "img", "data", "inputs", "input", "features")
LABELS = ("y", "labels", "label", "targets", "target")
CLASSES = ("classes", "class_names", "names", "label_names")
_FORM = "name its arrays x_train, y_train, x_test, y_test, those that there are"
_COPIES = 2  # of an array that are held at once while it is converted


def load_arrays(path: Path, preprocessing: Preprocessing) -> DataSet:
    """Load a .npz file with x_train, y_train, x_test, y_test, those that there are, or one array of images; or a .npy.

    Parts may be called otherwise, such as train_images and val_labels, and one array of images anything; labels that
    lie beside it are its own. `classes` holds the names of classes. Images are (N, H, W), (N, C, H, W), or (N, H, W, C)
    with a C of 1, 3 or 4 that is less than H; they are uint8, uint16, whose white is 65535, or floats in [0, 1], which
    are rounded to 255ths. Labels are classes, whole numbers (N,) from 0, texts (N,), or (N, K) with a one in each row;
    labels of 0 and 1 (N, L); classes of pixels (N, H, W), -100 where there is none; or numbers (N, ...).

    Raises
    ------
    DataError
        The file cannot be read without running code, does not fit into memory, or its arrays are not as above.
    """
    kind = ".npy" if path.suffix.lower() == ".npy" else ".npz"
    try:
        with path.open("rb") as file:
            single = file.read(len(MAGIC)) == MAGIC
        if single:
            images = read_images(_without_objects(header_of_npy(path)))
            return data_set_of(str(path), {}, Part(images, None), None, preprocessing)
        headers = headers_of_npz(path)
        images_of, labels_of, classes = _chosen(path, headers)
        parts = {
            part: Part(
                read_images(_without_objects(headers[name])),
                _as_labels(_whole(headers[labels_of[part]]), headers[labels_of[part]].where)
                if part in labels_of
                else None,
            )
            for part, name in images_of.items()
        }
        parts = _with_white_as_one(parts)
        names = _as_names(_whole(headers[classes[0]]), headers[classes[0]].where) if classes else None
    except DataError:
        raise
    except ValueError as error:
        reason = "it holds pickled objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a {kind}: {reason}") from None
    except Exception as error:  # a damaged archive or header may raise anything
        reason = (str(error).splitlines() or [""])[0] or "it is cut off"
        raise DataError(f"{path} cannot be read as a {kind}: {reason}") from None
    return data_set_of(str(path), parts, parts.pop("", None), names, preprocessing)


def _without_objects(header: ArrayHeader) -> ArrayHeader:
    if header.dtype.hasobject:
        raise ValueError("it is pickled")
    return header


def _whole(header: ArrayHeader) -> NDArray[Any]:
    if excess := too_much(_COPIES * header.nbytes):
        raise DataError(f"{header.where} needs {excess}: give fewer images")
    return header.read()


def _chosen(path: Path, headers: Mapping[str, ArrayHeader]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Choose arrays by their names: of each part its images and its labels, and the names of classes.

    A part is what the archive calls it, or "" where one array of images is all there is.
    """
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name in headers:
        part, role = _role(name)
        if part and role in LABELS:
            labels[part] = name
        elif part and (role in IMAGES or headers[name].may_be_images):
            if part in images:
                raise DataError(f"{path} holds both {images[part]} and {name}: {_FORM}")
            images[part] = name
    classes = [name for name in headers if name.lower() in CLASSES]
    if not images and not labels:
        candidates = [name for name, header in headers.items() if header.may_be_images]
        if len(candidates) > 1:
            candidates = [name for name in candidates if name.lower() in IMAGES] or candidates
        if len(candidates) > 1:
            raise DataError(f"{path} holds several arrays of images, {' and '.join(candidates[:2])}: {_FORM}")
        if not candidates:
            raise DataError(f"{path} holds no array of images, (N, H, W), (N, H, W, C) or (N, C, H, W): {_FORM}")
        images[""] = candidates[0]
        count = headers[candidates[0]].shape[0]
        others = [name for name in headers if name != candidates[0] and name not in classes]
        beside = [name for name in others if name.lower() in LABELS] or [
            name for name in others if headers[name].may_be_labels and headers[name].shape[0] == count
        ]
        if len(beside) > 1:
            raise DataError(f"{path} holds {' and '.join(beside[:2])}, and either may be the labels: call them labels")
        if beside:
            labels[""] = beside[0]
    for part, name in labels.items():
        if part not in images:
            wanted = name.lower().replace("y_", "x_") if name.lower().startswith("y_") else f"x_{part}"
            raise DataError(f"{path} has no {wanted}, the images of {name}: {_FORM}")
    return images, labels, classes


def _role(name: str) -> tuple[str, str]:
    """Divide a name like x_train or val_images into part and role; the part is "" where it names none."""
    words = name.lower().replace("-", "_").split("_")
    for place in (0, -1):
        if words[place] in KINDS and len(words) > 1:
            rest = words[1:] if place == 0 else words[:-1]
            return words[place], "_".join(rest)
    return (words[0], "x") if words[0] in KINDS else ("", "_".join(words))


def _as_labels(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Convert labels to whole numbers or texts (N,); what is no class of images stays as it is."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "uifb" and _is_one_hot(array):
        return np.asarray(array.argmax(1))
    if array.ndim == 1 and array.dtype.kind in "US":
        return (
            np.array([str(text, "utf-8", "replace") for text in array.tolist()]) if array.dtype.kind == "S" else array
        )
    if array.ndim == 1 and array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where} holds numbers that are not finite: leave out what has no label")
    if array.ndim == 0 or array.dtype.kind not in "uibf":
        raise DataError(
            f"{where} is {array.dtype} of shape {array.shape}: labels are whole numbers or texts of shape (N,), (N, K)"
            " with a one in each row, (N, H, W) of pixels, or numbers (N, ...)"
        )
    if array.dtype.kind == "f":
        return array
    known = array[array != IGNORED] if array.ndim > 2 else array  # of pixels
    if array.ndim > 1 and known.size and int(known.min()) < 0:
        raise DataError(f"{where} holds label {int(known.min())}: labels are 0, 1, 2, ...")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{where} holds label {int(array.max())}: labels are 0, 1, 2, ...")
    return array


def _with_white_as_one(parts: dict[str, Part]) -> dict[str, Part]:
    """Make 255 class 1 of labels of pixels that are nothing but 0 and 255, as in files of masks."""
    masks = [part.labels for part in parts.values() if isinstance(part.labels, np.ndarray) and _is_mask(part.labels)]
    if not masks or {int(value) for own in masks for value in np.unique(own)} != {0, NO_CLASS}:
        return parts
    return {
        name: Part(part.images, (part.labels == NO_CLASS).astype(np.uint8))
        if isinstance(part.labels, np.ndarray) and _is_mask(part.labels)
        else part
        for name, part in parts.items()
    }


def _is_mask(labels: NDArray[Any]) -> bool:
    return labels.dtype.kind in "ui" and (labels.ndim == 3 or (labels.ndim == 4 and labels.shape[1] == 1))


def _is_one_hot(array: NDArray[Any]) -> bool:
    return bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())


def _as_names(array: NDArray[Any], where: str) -> tuple[str, ...]:
    if array.ndim != 1 or len(array) > MOST_CLASSES:
        raise DataError(
            f"{where} has shape {array.shape}: names of classes are one list, of shape (K,), and at most {MOST_CLASSES}"
        )
    return tuple(str(name, "utf-8", "replace") if isinstance(name, bytes) else str(name) for name in array.tolist())
