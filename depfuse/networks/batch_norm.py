"""New statistics for a BatchNorm that keep its function."""

from __future__ import annotations

from torch import Tensor


def set_statistics_keeping_function(
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    epsilon: float,
    mean: Tensor,
    variance: Tensor,
) -> None:
    r"""Set a BatchNorm's running statistics in place, and compensate by its weight and bias.

    With the factor :math:`f = w / \sqrt{v + \epsilon}`, it maps x to :math:`f x + b - f m`, before and after.

    Parameters
    ----------
    weight, bias, running_mean, running_var
        The BatchNorm's tensors (C,); changed.
    epsilon
        The BatchNorm's epsilon.
    mean, variance
        The new statistics (C,), float64.
    """
    factor = weight.double() / (running_var.double() + epsilon).sqrt()
    shift = bias.double() + factor * (mean - running_mean.double())
    weight.copy_(factor * (variance + epsilon).sqrt())
    bias.copy_(shift)
    running_mean.copy_(mean)
    running_var.copy_(variance)
