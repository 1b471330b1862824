"""Parts of a data set: training, test, or everything where nothing says which is which."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depfuse.data.draws import order_of_class
from depfuse.data.masks import MaskFiles
from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import MOST_CLASSES, DataSet, Split, check_count, checked_data_set
from depfuse.errors import DataError, DepfuseWarning
from depfuse.text import counted

Kind = Literal["train", "test", "valid"]
KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("train", "training", "train2014", "train2017"), "train"),
    **dict.fromkeys(("test", "testing", "test2014", "test2017"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "val2014", "val2017"), "valid"),
}
"""What people call a part -> what it is; in small letters."""
SPLIT_SEED = 0  # always the same images are tested, whatever other seeds are
TEST_SHARE = 0.2  # of the images of a class, where nothing says which are for tests


@dataclass(frozen=True)
class Part:
    """Images, an array or files, with their labels, if they have any: numbers, names of classes, or masks.

    `sources` are those of `Split`.
    """

    images: Any
    labels: NDArray[Any] | Tensor | MaskFiles | None
    sources: Tensor | None = None


def data_set_of(
    name: str,
    parts: Mapping[str, Part],
    whole: Part | None,
    classes: Sequence[str] | None,
    preprocessing: Preprocessing,
    *,
    by_name: bool = False,
) -> DataSet:
    """Make a data set of parts by what they are called, or of images that nothing divides.

    Test images are those of `test`, or of `val` where `test` has no labels or is not there. Labelled images that
    nothing divides are divided by `SPLIT_SEED`, class by class; others are for training.

    Parameters
    ----------
    name
        What the data are called.
    parts
        A key of `KINDS` -> that part.
    whole
        Images that nothing divides, where there are no parts.
    classes
        The names of classes, where labels are numbers.
    preprocessing
        What happens to images before a network.
    by_name
        Whether labels are the places of `classes` in alphabetical order.

    Raises
    ------
    DataError
        See `checked_data_set`; or a class has no name.
    """
    of_kind = {KINDS[own.lower()]: (own, part) for own, part in parts.items()}
    tests = [of_kind[kind] for kind in ("test", "valid") if kind in of_kind]
    chosen = next((test for test in tests if test[1].labels is not None), tests[0] if tests else None)
    train = of_kind["train"][1] if "train" in of_kind else whole
    for other, _ in tests:
        if chosen is not None and other != chosen[0]:
            _say(f"{name}: the test images are those of {chosen[0]}; those of {other} are not used")
    test = None if chosen is None else chosen[1]
    parts_there = [part for part in (train, test) if part is not None]
    if not parts_there:
        raise DataError(f"{name} holds no images")
    names = _names(name, parts_there, classes)
    split = None if train is None else _as_split(name, train, names)
    tested = None if test is None else _as_split(name, test, names)
    labels_of_both = None if names is None and all(part.labels is None for part in parts_there) else names
    if split is not None and test is None and whole is train and split.labels is not None:
        check_count(name, "training", split)
        split, tested = _divided(name, split)
    by_name = by_name or (classes is None and names is not None)
    return checked_data_set(name, labels_of_both, split, tested, preprocessing, by_name=by_name)


def with_test_images(data: DataSet) -> DataSet:
    """Divide the training images of data without a test set, as `data_set_of` does, for a network to be trained.

    Raises
    ------
    DataError
        The images have no labels.
    """
    if data.train.labels is None:
        raise DataError(f"{data.name} has no labels, and training needs them: give data with labels")
    if data.test is not None and data.test.labels is not None:
        return data
    train, test = _divided(data.name, data.train)
    if test is None:
        raise DataError(f"{data.name} has no test set, and too few images to hold any out: give more")
    return replace(data, train=train, test=test)


def _divided(name: str, whole: Split) -> tuple[Split, Split | None]:
    """Divide labelled images into training and test images, and say so: class by class, other labels by seed alone."""
    labels = whole.required_labels if whole.of_classes else torch.zeros(len(whole), dtype=torch.int64)
    held = []
    for label in torch.unique(labels).tolist():
        of_class = torch.nonzero(labels == label)[:, 0]
        shuffled = of_class[order_of_class(len(of_class), SPLIT_SEED, label)]
        held.append(shuffled[: round(TEST_SHARE * len(of_class))])
    numbers = torch.sort(torch.cat(held)).values if held else torch.zeros(0, dtype=torch.int64)
    if len(numbers) == 0:
        return whole, None
    in_training = torch.ones(len(whole), dtype=torch.bool)
    in_training[numbers] = False
    by_class = " of each class" if whole.of_classes else ""
    _say(
        f"{name} has no labelled test set: {len(numbers):,} of {counted(len(whole), 'image')},"
        f" {100 * TEST_SHARE:.0f} %{by_class}, drawn by seed {SPLIT_SEED}, are the test images"
    )
    return whole.take(torch.nonzero(in_training)[:, 0]), whole.take(numbers)


def _names(name: str, parts: Sequence[Part], classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Settle the names of classes: those given, else the texts that are labels; None where labels are numbers."""
    if classes is not None:
        return tuple(classes)
    texts = [part.labels for part in parts if isinstance(part.labels, np.ndarray) and part.labels.dtype.kind == "U"]
    if not texts:
        return None
    names = sorted({str(text) for labels in texts for text in np.unique(labels)})
    if len(names) > MOST_CLASSES:
        raise DataError(f"{name}: the labels are {len(names):,} different texts, more classes than any data set has")
    return tuple(names)


def _as_split(name: str, part: Part, names: Sequence[str] | None) -> Split:
    labels = part.labels
    if labels is None or isinstance(labels, (Tensor, MaskFiles)):
        return Split(part.images, labels, sources=part.sources)
    if labels.dtype.kind == "U":
        assert names is not None
        numbers = {text: number for number, text in enumerate(names)}
        unknown = next((text for text in labels.tolist() if text not in numbers), None)
        if unknown is not None:
            raise DataError(f"{name}: the label {unknown!r} is none of the classes {', '.join(list(names)[:5])}, ...")
        labels = np.array([numbers[text] for text in labels.tolist()], np.int64)
    return Split(part.images, _as_tensor(labels))


def _as_tensor(labels: NDArray[Any]) -> Tensor:
    return torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))


def _say(sentence: str) -> None:
    warnings.warn(sentence, DepfuseWarning, stacklevel=2)
