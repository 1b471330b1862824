"""Selections of a training set by label, for parents with different label sets."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from depfuse.data.draws import order_of_class
from depfuse.data.label_shares import LabelShare, check_share
from depfuse.data.loader import calibration_order
from depfuse.data.tensors import DataSet, Split
from depfuse.errors import DataError
from depfuse.tasks.label_kinds import UNKNOWN


def labelled_first(data: DataSet, numbers: Tensor, labels: Tensor, seed: int) -> DataSet:
    """Give some training images labels, and no other ones; calibration by this seed takes these images first.

    Parameters
    ----------
    data
        The training images change places.
    numbers
        Of the images with labels (n,).
    labels
        Their labels (n,), int64; the other images have `UNKNOWN`.
    seed
        Of the calibration.
    """
    count = len(data.train)
    order = calibration_order(count, seed)
    rest = torch.ones(count, dtype=torch.bool)
    rest[numbers] = False
    places = torch.empty(count, dtype=torch.int64)
    places[order] = torch.cat([numbers, rest.nonzero()[:, 0]])
    known = torch.full((count,), UNKNOWN)
    known[order[: len(numbers)]] = labels
    return dataclasses.replace(data, train=dataclasses.replace(data.train.take(places), labels=known))


def select_labels(data: DataSet, shares: LabelShare, *, seed: int = 0) -> tuple[DataSet, list[int]]:
    """Keep a share of each class's training images, and the test images of the remaining classes.

    The remaining labels are renumbered 0, 1, ... in ascending order; if all of them remain, they keep
    their numbers.

    Returns
    -------
    DataSet, list of int
        The data, and for each label its former label.

    Raises
    ------
    DataError
        The data lack a label, or a share is so small that a class has no training image.
    """
    remaining = sorted(shares)
    wrong = [label for label in remaining if label >= len(data.classes) or label < 0]
    if wrong:
        raise DataError(f"{data.name} has labels 0 to {len(data.classes) - 1}, not {wrong[0]}")
    chosen = []
    for label in remaining:
        of_class = torch.nonzero(data.train.required_labels == label)[:, 0]
        count = round(shares[label] * len(of_class))
        if count == 0:
            raise DataError(f"{data.name}: a share of {shares[label]:g} leaves class {label} without a training image")
        # Seeded by class, so that the images of one class do not depend on the share of another.
        chosen.append(of_class[order_of_class(len(of_class), seed, label)[:count]])
    selected = torch.sort(torch.cat(chosen)).values
    tested = data.required_test
    test = torch.isin(tested.required_labels, torch.tensor(remaining))
    renumber = torch.full((len(data.classes),), -1)
    renumber[torch.tensor(remaining)] = torch.arange(len(remaining))
    train, rest = data.train.take(selected), tested.take(torch.nonzero(test)[:, 0])
    return (
        dataclasses.replace(
            data,
            classes=tuple(data.classes[label] for label in remaining),
            train=Split(train.images, renumber[train.required_labels]),
            test=Split(rest.images, renumber[rest.required_labels]),
        ),
        remaining,
    )


def select_share(data: DataSet, share: int, shares: int, *, alpha: float | None = None, seed: int = 0) -> DataSet:
    """Keep one of `shares` disjoint parts of the training images, whose union is all of them.

    Every class is divided evenly, or, with `alpha`, in proportions drawn for that class from a
    symmetric Dirichlet distribution of concentration `alpha`: the smaller, the more the parts differ
    (Hsu, Qi & Brown 2019). The parts depend on the seed alone.

    Raises
    ------
    DataError
        `share` is not one of 0 ... `shares` - 1, `alpha` is not positive, or the part is empty.
    """
    check_share(share, shares, alpha)
    parts: list[Tensor] = []
    for label in range(len(data.classes)):
        of_class = torch.nonzero(data.train.required_labels == label)[:, 0]
        shuffled = of_class[order_of_class(len(of_class), seed, label)]
        if alpha is None:
            parts.append(shuffled[share::shares])
        else:
            generator = np.random.default_rng([seed, label, 1])
            ends = np.rint(np.cumsum(generator.dirichlet([alpha] * shares)) * len(shuffled)).astype(int)
            parts.append(shuffled[(ends[share - 1] if share else 0) : ends[share]])
    selected = torch.sort(torch.cat(parts)).values
    if len(selected) == 0:
        raise DataError(f"{data.name}: share {share} of {shares} has no training image")
    return dataclasses.replace(data, train=data.train.take(selected))
