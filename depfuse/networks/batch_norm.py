"""Other statistics for a BatchNorm, with what it does to its channels as it was."""

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
    r"""Give a BatchNorm a mean and a variance, in place; scale and shift make up for the change.

    With the factor :math:`f = w / \sqrt{v + \epsilon}`, it adds :math:`b - f m` to f times what it takes in, before and
    after.

    Parameters
    ----------
    weight, bias, running_mean, running_var
        Its tensors (C,); changed.
    epsilon
        What it adds to the variance.
    mean, variance
        The new statistics (C,), float64.
    """
    factor = weight.double() / (running_var.double() + epsilon).sqrt()
    shift = bias.double() + factor * (mean - running_mean.double())
    weight.copy_(factor * (variance + epsilon).sqrt())
    bias.copy_(shift)
    running_mean.copy_(mean)
    running_var.copy_(variance)
