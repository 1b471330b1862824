"""Data sets of torchvision by name and folder, such as `Food101:/data`; nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depfuse.data.images import as_pixels, is_grey_mode
from depfuse.data.names import split_name
from depfuse.data.parts import Part, data_set_of
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.stored_images import StoredImages
from depfuse.data.tensors import DataSet
from depfuse.errors import DataError
from depfuse.text import first_line

# What torchvision calls parts; the first that a data set has is taken.
_PARTS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val", "valid")}
_LABELS = ("targets", "labels", "_labels", "samples", "_samples")  # where data sets keep their labels
_IN_PYTHON = "in Python, give the data set itself to fuse"


@dataclass(frozen=True, eq=False)
class Samples(StoredImages):
    """Images of a data set of torchvision, decoded when they are needed.

    Attributes
    ----------
    source
        The data set; its samples are pairs (PIL image, label).
    numbers
        Which of its samples these are.
    shape
        (N, C, H, W).
    size
        (height, width) that they are brought to; None keeps theirs.
    """

    source: Any
    numbers: Tensor
    shape: tuple[int, int, int, int]
    size: tuple[int, int] | None

    @property
    def example(self) -> str:
        """The name of the data set."""
        return f"those of {type(self.source).__name__}"

    def take(self, index: slice | Tensor) -> Samples:
        """Select samples by number (n,), in that order, or a range of them; nothing is decoded."""
        numbers = self.numbers[index if isinstance(index, slice) else index.cpu()]
        return Samples(self.source, numbers, (len(numbers), *self.shape[1:]), self.size)

    def fill(self, images: Tensor) -> None:
        """Decode all samples into a tensor; see `StoredImages.fill`."""
        channels, height, width = self.shape[1:]
        for place, number in enumerate(self.numbers.tolist()):
            name = f"{type(self.source).__name__}[{number}]"
            pixels = as_pixels(_image(self.source, number), name, grey=channels == 1, size=self.size)
            if pixels.shape[:2] != (height, width):
                raise DataError(
                    f"{name} is {pixels.shape[1]} x {pixels.shape[0]} pixels and the first {width} x {height}: "
                    "give one size with `size`, height and width, such as 224,224"
                )
            images[place] = torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)


def load_torchvision_set(spec: str, preprocessing: Preprocessing) -> DataSet:
    """Load what torchvision's class `NAME` finds in a folder, by `NAME:FOLDER`; parts are those that it has.

    Raises
    ------
    DataError
        There is no such class, it does not find its files, needs other arguments, or its samples are no images with a
        whole number.
    """
    from torchvision import datasets

    name, root = split_name(spec)
    known = {own.lower(): own for own in datasets.__all__}
    if name.lower() not in known:
        raise DataError(f"{spec}: torchvision has no data set {name}: give the name of a class in torchvision.datasets")
    kind = getattr(datasets, known[name.lower()])
    found = _parts(spec, kind, root)
    made = {part: _as_part(spec, source, preprocessing.size) for part, source in found.items()}
    whole = made.pop("", None)
    return data_set_of(spec, made, whole, _classes(next(iter(found.values()))), preprocessing)


def _parts(spec: str, kind: Any, root: str) -> dict[str, Any]:
    """Make the data sets of all parts; one called "" where there are no parts."""
    parameters = inspect.signature(kind).parameters
    others = [
        own.name
        for own in list(parameters.values())[1:]
        if own.default is own.empty and own.kind not in (own.VAR_POSITIONAL, own.VAR_KEYWORD)
    ]
    if others or "root" not in parameters:
        needed = f"needs {' and '.join(others)}" if others else "reads no folder"
        raise DataError(f"{spec}: torchvision's {kind.__name__} {needed}: {_IN_PYTHON}")
    fixed: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        return {part: _made(spec, kind, root, {**fixed, "train": part == "train"}) for part in _PARTS}
    if "split" not in parameters:
        return {"": _made(spec, kind, root, fixed)}
    found = {}
    for part, names in _PARTS.items():
        for own in names:
            try:
                found[part] = _made(spec, kind, root, {**fixed, "split": own})
                break
            except ValueError:  # it has no part of that name
                continue
    if not found:
        raise DataError(f"{spec}: torchvision's {kind.__name__} has no part for training or tests: {_IN_PYTHON}")
    return found


def _made(spec: str, kind: Any, root: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(root, **arguments)
    except (OSError, RuntimeError) as error:  # torchvision raises these where files are missing or damaged
        raise DataError(
            f"{spec}: torchvision's {kind.__name__} does not find its files in {root} ({first_line(error)}), and"
            " nothing is downloaded: give the folder that it was downloaded to"
        ) from None
    except ImportError as error:
        raise DataError(f"{spec}: torchvision's {kind.__name__} needs more: {first_line(error)}") from None


def _as_part(spec: str, source: Any, size: tuple[int, int] | None) -> Part:
    if len(source) == 0:
        raise DataError(f"{spec} holds no images")
    first = _image(source, 0)
    channels = 1 if is_grey_mode(first.mode) else 3
    height, width = size or (first.height, first.width)
    labels = _labels(source)
    samples = Samples(source, torch.arange(len(source)), (len(source), channels, height, width), size)
    return Part(samples.held(), labels)


def _image(source: Any, number: int) -> Image.Image:
    sample = source[number]
    image = sample[0] if isinstance(sample, tuple) else sample
    if not isinstance(image, Image.Image):
        raise DataError(f"{type(source).__name__} gives no images, but a {type(image).__name__}: {_IN_PYTHON}")
    return image


def _labels(source: Any) -> np.ndarray:
    """Read the labels (N,) of all samples, without decoding their images where the data set keeps them apart."""
    for name in _LABELS:
        kept = getattr(source, name, None)
        if isinstance(kept, Sequence) and len(kept) == len(source) and isinstance(kept[0], tuple):
            kept = [sample[1] for sample in kept]
        if isinstance(kept, (Sequence, np.ndarray, Tensor)) and len(kept) == len(source):
            found = np.asarray(kept)
            if found.ndim == 1 and found.dtype.kind in "iu":
                return found.astype(np.int64)
    labels = [source[number][1] if isinstance(source[number], tuple) else None for number in range(len(source))]
    if not all(isinstance(label, int) for label in labels):
        raise DataError(f"the labels of {type(source).__name__} are no whole numbers, one for each image: {_IN_PYTHON}")
    return np.array(labels, np.int64)


def _classes(source: Any) -> tuple[str, ...] | None:
    """Read the names of classes; of several for one class the first."""
    classes = getattr(source, "classes", None)
    if not isinstance(classes, (list, tuple)):
        return None
    return tuple(str(own[0]) if isinstance(own, tuple) and own else str(own) for own in classes)
