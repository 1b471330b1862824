"""Clustering of the parents' channels into mixtures, one for each channel of the child."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def cluster_channels(covariance: Tensor, count: int) -> Tensor:
    r"""Combine N channels into `count` non-negative mixtures that lose little of their variance.

    The two channels whose combination loses least are replaced by their first principal component, until `count` are
    left: treelets (Lee, Nadler & Wasserman 2008, section 2) with non-negative weights, so that outputs of a ReLU stay
    non-negative. Channels of one network may be merged as well as channels of different ones (Stoica et al. 2024,
    section 4), and unimportant channels are merged with many others.

    Parameters
    ----------
    covariance
        (N, N) covariance of the channels, each in the units in which a loss of variance is to be counted.
    count
        Number of mixtures, at most N.

    Returns
    -------
    Tensor
        (count, N) float64, non-negative; each channel is in one mixture at most, each row has Euclidean length 1.
    """
    k = covariance.double().clone()
    size = len(k)
    weights = torch.eye(size, dtype=torch.float64)
    loss = _losses(k.diagonal()[:, None], k.diagonal()[None], k)
    loss.fill_diagonal_(torch.inf)
    alive = torch.ones(size, dtype=torch.bool)
    for _ in range(size - count):
        first, second = sorted(divmod(int(loss.argmin()), size))
        one, two = _principal(float(k[first, first]), float(k[second, second]), float(k[first, second]))
        weights[first] = one * weights[first] + two * weights[second]
        row = one * k[first] + two * k[second]
        variance = one * float(row[first]) + two * float(row[second])
        k[first], k[:, first] = row, row
        k[first, first] = variance
        alive[second] = False
        weights[second] = 0.0
        fresh = _losses(k.diagonal(), k[first, first], k[first])
        fresh[~alive] = torch.inf
        fresh[first] = torch.inf
        loss[first], loss[:, first] = fresh, fresh
        loss[second] = loss[:, second] = torch.inf
    return weights[alive]


def in_order_of(mixtures: Tensor, reference: Tensor) -> Tensor:
    """Order the rows of `mixtures` (C, N) by overlap with those of `reference` (C, N)."""
    overlap = reference.double() @ mixtures.double().T
    return mixtures[torch.from_numpy(linear_sum_assignment(overlap.numpy(), maximize=True)[1])]


def _losses(first: Tensor, second: Tensor, covariance: Tensor) -> Tensor:
    """Compute the variance that two channels lose when they are replaced by their best non-negative mixture."""
    half = (first + second) / 2
    spread = (((first - second) / 2).square() + covariance.clamp_min(0.0).square()).sqrt()
    return (half - spread).clamp_min(0.0)


def _principal(first: float, second: float, covariance: float) -> tuple[float, float]:
    """Compute the first principal component as a unit vector; if not positive, take the channel with more variance."""
    if covariance <= 0.0:
        return (1.0, 0.0) if first >= second else (0.0, 1.0)
    matrix = torch.tensor([[first, covariance], [covariance, second]], dtype=torch.float64)
    vector = torch.linalg.eigh(matrix)[1][:, -1].abs()
    return float(vector[0]), float(vector[1])
