"""Backward passes that begin with given derivatives, and forward ones."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Point = TypeVar("Point")  # tensors in any structure


def scalar_with(derivatives: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Make a scalar (zero) whose derivatives by some outputs are given, each of its output's shape.

    A backward pass from it is one from the outputs with `grad_tensors`, for which torch imports SymPy: over a second.
    """
    scalar: Tensor = _Given.apply(derivatives, *outputs)
    return scalar


def forward_derivative(function: Callable[[Point], Tensor], at: Point, along: Point) -> Tensor:
    """Compute a directional derivative, of the output's shape, without a word of torch's about torch."""
    _load_forward_rules()
    derivative: Tensor = torch.func.jvp(function, (at,), (along,))[1]
    return derivative


@functools.cache
def _load_forward_rules() -> None:
    """Let torch import its rules, which it does at the first derivative, by calls that it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones((), dtype=torch.float32)
        torch.func.jvp(torch.sin, (one,), (one,))


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, derivatives: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        context.derivatives = derivatives
        return outputs[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(context: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *context.derivatives
