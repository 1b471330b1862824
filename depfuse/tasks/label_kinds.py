"""What labels are, by type and shape, and whether they fit the outputs that are scored by them or learn them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from depfuse.errors import DataError
from depfuse.tasks.batch_inputs import as_labels

if TYPE_CHECKING:
    from depfuse.tasks.task import Task

UNKNOWN = -1  # label of images of which none is known, beside others
IGNORED = -100  # label of places without a class, as torch's losses have it
NO_CLASS = 255  # the same where labels are bytes, as files of masks have it


def are_classes(labels: Any) -> bool:
    """Tell whether labels are classes of images, whole numbers (N,): none of pixels, no numbers, none of 0 and 1 each.

    Labels that are files (`MaskFiles`) are of pixels.
    """
    return isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()


def fitted_classes(labels: Tensor, outputs: Tensor) -> Tensor:
    """Give labels of images the shape (N,) of rows of class scores (N, C); their range is left (`check_range`).

    Raises
    ------
    DataError
        They are no whole numbers, or not one for each image; so for all functions here.
    """
    labels = fitted(labels, outputs.shape[:1])
    fits = outputs.dim() == 2 and labels.shape == outputs.shape[:1] and are_classes(labels)
    check_labels(fits, outputs, labels, "labels of images, whole numbers (N,)")
    return labels.long()


def fitted_places(labels: Tensor, outputs: Tensor) -> Tensor:
    """Give labels of places the shape (N, ...) of maps (N, C, ...); those without a class are `IGNORED`."""
    classes, shape = outputs.shape[1], (len(outputs), *outputs.shape[2:])
    labels = fitted(labels, shape)
    fits = labels.shape == shape and not labels.is_floating_point()
    check_labels(fits, outputs, labels, "labels of places, whole numbers (N, ...) of the size of the maps")
    labels = labels.long()
    labels = labels.masked_fill(labels == NO_CLASS, IGNORED) if classes <= NO_CLASS else labels
    check_range(labels, classes, IGNORED)
    return labels


def fitted_answers(labels: Tensor, outputs: Tensor) -> Tensor:
    """Give labels of 0 and 1 the shape of logits (N,), (N, L) or (N, L, ...), in float32."""
    shape = (len(outputs), 1) if outputs.dim() == 1 else outputs.shape
    fits = labels.numel() == math.prod(shape) and len(labels) == len(outputs)
    fits = fits and bool(((labels == 0) | (labels == 1)).all())
    check_labels(fits, outputs, labels, f"labels 0 and 1 of shape (N{', '.join(['', *map(str, shape[1:])])})")
    return labels.reshape(outputs.shape).float()


def fitted_numbers(labels: Tensor, outputs: Tensor) -> Tensor:
    """Give targets the shape of numbers (N, ...), in float32."""
    shape = (len(outputs), 1) if outputs.dim() == 1 else outputs.shape
    labels = fitted(labels, shape)
    wanted = f"targets of the same shape, {tuple(shape[1:])} for each image"
    check_labels(labels.shape == torch.Size(shape), outputs, labels, wanted)
    return labels.reshape(outputs.shape).float()


def fitted_directions(labels: Tensor, outputs: Tensor) -> Tensor:
    """Take classes (N,) of embeddings (N, D), or embeddings of the outputs' shape."""
    classes = are_classes(labels) and outputs.dim() == 2
    fits = len(labels) == len(outputs) and (classes or labels.shape == outputs.shape)
    check_labels(fits, outputs, labels, "classes (N,) of embeddings (N, D), or embeddings of the same shape")
    return labels


def check_labels(fits: bool, outputs: Tensor, labels: Tensor, wanted: str) -> None:
    """Raise `DataError` unless labels have the shape by which outputs are scored."""
    if not fits:
        kind = "whole numbers" if not labels.is_floating_point() else "numbers"
        raise DataError(
            f"outputs {tuple(outputs.shape)} are scored by {wanted}, and the labels are {kind} of shape"
            f" {tuple(labels.shape)}: give labels of that shape, or name the `task` that the networks are of"
        )


def fitted(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Give labels a shape from which theirs differs by axes of length one alone; others stay."""
    wanted = torch.Size(shape)
    alike = len(labels) == wanted[0] and [n for n in labels.shape[1:] if n > 1] == [n for n in wanted[1:] if n > 1]
    return labels.reshape(wanted) if alike and labels.numel() == wanted.numel() else labels


def check_range(labels: Tensor, outputs: int, ignored: int | None = None) -> None:
    """Raise `DataError` unless labels are 0 ... outputs - 1; those that are ignored aside."""
    counted = labels if ignored is None else labels[labels != ignored]
    if counted.numel():
        check_extremes(int(counted.min()), int(counted.max()), outputs)


def check_extremes(lowest: int, highest: int, outputs: int) -> None:
    """Raise `DataError` unless the lowest and the highest label are 0 ... outputs - 1."""
    if lowest < 0 or highest >= outputs:
        raise DataError(
            f"the data have the label {lowest if lowest < 0 else highest}, but the network has {outputs} outputs"
            f" (labels 0 to {outputs - 1}): use the data set that the network was trained for"
        )


def labels_for(task: Task, labels: Any, outputs: Tensor) -> Tensor:
    """Give all labels the form by which a task learns and scores a network, whose outputs for some samples are given.

    Raises
    ------
    DataError
        They do not fit the outputs: by shape, type or range; or one is not finite.
    """
    given = as_labels(labels)
    if given.is_floating_point() and given.dim() and not bool(given.isfinite().all()):
        number = int((~given.isfinite()).reshape(len(given), -1).any(1).nonzero()[0, 0])
        raise DataError(f"the labels of sample {number} are not finite: leave such samples out")
    if given.dim() == 0:
        raise DataError(f"the labels are one number, {given}: give a label for each sample")
    return task.fitted_labels(given, outputs[:1].to(given.device).expand(len(given), *outputs.shape[1:]))
