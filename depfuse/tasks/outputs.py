"""Outputs of networks: as one tensor, and what they are by their shape where nothing else is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depfuse.errors import DataError, RecipeError
from depfuse.networks.running import float_tensors
from depfuse.tasks.classes import Classes
from depfuse.tasks.regression import Regression
from depfuse.tasks.task import Task

CLASSES = Classes()
NUMBERS = Regression()


def as_numbers(output: Any) -> Tensor:
    """Return a tensor unchanged; concatenate a dictionary or tuple of outputs to one column (N, m, 1) per image."""
    if isinstance(output, Tensor):
        return output
    tensors = float_tensors(output)
    if not tensors or any(leaf.numel() == 0 or leaf.dim() == 0 or len(leaf) != len(tensors[0]) for leaf in tensors):
        raise DataError("outputs are compared image by image: give networks whose outputs have an entry for each image")
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in tensors], 1).unsqueeze(-1)


def check_numbers(output: Any, parent: int, first: int | None = None) -> None:
    """Raise `DataError` where a parent, counted from 0, gives NaN for an image.

    `first` is the number of the first image, where that is known.
    """
    for leaf in float_tensors(output):
        if not bool(leaf.isnan().any()):
            continue
        broken = leaf.isnan().reshape(len(leaf), -1).any(1) if leaf.dim() else leaf.isnan()[None]
        which = "an image" if first is None else f"calibration image {first + int(broken.nonzero()[0, 0])}"
        raise DataError(
            f"parent {parent + 1} gives NaN for {which}, from which nothing can be learned: leave such images out, or"
            " mend the network"
        )


def gives_classes(outputs: Tensor) -> bool:
    """Tell whether outputs are one row of class scores (N, C) per image by their shape.

    Raises
    ------
    RecipeError
        The outputs are no tensor, from which alone a child can learn.
    """
    if not isinstance(outputs, Tensor):
        raise RecipeError(
            f"the networks give a {type(outputs).__name__} of outputs, and a child can learn from one tensor only: "
            "wrap them so that they return it, or choose refit none"
        )
    return outputs.dim() == 2 and outputs.shape[1] > 1


def task_by_shape(outputs: Tensor) -> Task:
    """Return the task of outputs (N, ...): classes where they are rows of two or more numbers, else plain numbers."""
    return CLASSES if gives_classes(outputs) else NUMBERS
