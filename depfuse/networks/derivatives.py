"""Backward passes that begin with given derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def scalar_with(derivatives: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Make a scalar (zero) whose derivatives by some outputs are given, each of its output's shape.

    A backward pass from it is one from the outputs with `grad_tensors`, for which torch imports SymPy: over a second.
    """
    scalar: Tensor = _Given.apply(derivatives, *outputs)
    return scalar


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, derivatives: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        context.derivatives = derivatives
        return outputs[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(context: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *context.derivatives
