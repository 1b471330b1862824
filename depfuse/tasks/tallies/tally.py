"""What sums up scores over batches, and the errors that all of them raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from depfuse.errors import DataError
from depfuse.tasks.scores import Scores


class Tally(Protocol):
    """Sums over batches of what scores are made of."""

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch of outputs (N, ...) and labels; raise `DataError` where labels do not fit the outputs."""

    def scores(self) -> Scores:
        """Compute the scores; raise `DataError` where there was no image."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate what was kept of each batch; raise `DataError` where there was none."""
    if not parts:
        raise DataError("there is no image to evaluate on")
    return torch.cat(list(parts))


def finite(outputs: Tensor) -> Tensor:
    """Replace what is not finite by zero: it predicts nothing."""
    outputs = outputs.float()
    return outputs.where(outputs.isfinite(), torch.zeros_like(outputs))


def of_ratio(above: Tensor, below: Tensor) -> Tensor:
    r"""Compute what each image contributes to the mean over columns of ratios of sums.

    With sums A and B of the columns, image i contributes :math:`\overline{A/B + N (a_i - (A / B) b_i) / B}` (Cochran
    1977, Sampling Techniques, section 2.11), whose mean over the images is the ratio.

    Parameters
    ----------
    above, below
        (N, K); columns without anything below are left out.
    """
    above, below = above.double(), below.double()
    total = below.sum(0)
    kept = total > 0
    above, below, total = above[:, kept], below[:, kept], total[kept]
    if not total.numel():
        return torch.zeros(len(above), dtype=torch.float64)
    ratio = above.sum(0) / total
    return (ratio + len(above) * (above - ratio * below) / total).mean(1)


def value_of(metric: Any) -> float:
    """Compute a metric of torchmetrics."""
    return float(metric.compute())
