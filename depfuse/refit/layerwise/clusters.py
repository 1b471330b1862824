"""Clustering of the parents' channels into mixtures, one for each channel of the child."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
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
    k: NDArray[np.float64] = covariance.double().cpu().numpy().copy()
    size = len(k)
    weights = np.eye(size)
    pairs = _Pairs(k)
    for _ in range(size - count):
        first, second = pairs.least()
        one, two = _principal(float(k[first, first]), float(k[second, second]), float(k[first, second]))
        weights[first] = one * weights[first] + two * weights[second]
        row = one * k[first] + two * k[second]
        variance = one * float(row[first]) + two * float(row[second])
        k[first], k[:, first] = row, row
        k[first, first] = variance
        weights[second] = 0.0
        pairs.merge(first, second, k)
    return torch.from_numpy(weights[pairs.alive])


class _Pairs:
    """The losses of all pairs of channels, and each channel's best partner.

    A channel whose partner was merged is looked at anew when its turn comes: until then its last loss is a lower bound
    (Müllner 2011, section 3.1). Of equal losses the first one counts, row by row.
    """

    def __init__(self, covariance: NDArray[np.float64]) -> None:
        variances = covariance.diagonal()
        self.alive = np.ones(len(covariance), dtype=bool)
        self._loss = _losses(variances[:, None], variances[None], covariance)
        np.fill_diagonal(self._loss, np.inf)
        self._partner = self._loss.argmin(1)
        self._least = self._loss.min(1)
        self._stale = np.zeros(len(covariance), dtype=bool)

    def least(self) -> tuple[int, int]:
        """Return the pair with the least loss, its smaller number first."""
        first = int(self._least.argmin())
        while self._stale[first]:
            rows = np.flatnonzero(self._stale & (self._least <= self._least[~self._stale].min()))
            losses = self._loss[rows]
            self._partner[rows] = partners = losses.argmin(1)
            self._least[rows], self._stale[rows] = losses[np.arange(len(rows)), partners], False
            first = int(self._least.argmin())
        partner = int(self._partner[first])
        return min(first, partner), max(first, partner)

    def merge(self, first: int, second: int, covariance: NDArray[np.float64]) -> None:
        """Replace two channels by their mixture, which has the number and row of the first one."""
        self.alive[second] = False
        fresh = _losses(covariance.diagonal(), covariance[first, first], covariance[first])
        fresh[~self.alive] = np.inf
        fresh[first] = np.inf
        self._loss[first], self._loss[:, first] = fresh, fresh
        self._loss[second] = self._loss[:, second] = np.inf
        self._stale |= (self._partner == first) | (self._partner == second)
        better = (fresh < self._least) | ((fresh == self._least) & ~self._stale & (first < self._partner))
        self._partner[better], self._least[better], self._stale[better] = first, fresh[better], False
        for row in (first, second):
            self._partner[row] = self._loss[row].argmin()
            self._least[row], self._stale[row] = self._loss[row, self._partner[row]], False


def in_order_of(mixtures: Tensor, reference: Tensor) -> Tensor:
    """Order the rows of `mixtures` (C, N) by overlap with those of `reference` (C, N)."""
    overlap = reference.double() @ mixtures.double().T
    return mixtures[torch.from_numpy(linear_sum_assignment(overlap.numpy(), maximize=True)[1])]


def _losses(
    first: NDArray[np.float64], second: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the variance that two channels lose when they are replaced by their best non-negative mixture."""
    half = (first + second) / 2
    spread = np.sqrt(((first - second) / 2) ** 2 + covariance.clip(0.0) ** 2)
    losses: NDArray[np.float64] = (half - spread).clip(0.0)
    return losses


def _principal(first: float, second: float, covariance: float) -> tuple[float, float]:
    """Compute the first principal component as a unit vector; if not positive, take the channel with more variance."""
    if covariance <= 0.0:
        return (1.0, 0.0) if first >= second else (0.0, 1.0)
    matrix = torch.tensor([[first, covariance], [covariance, second]], dtype=torch.float64)
    vector = torch.linalg.eigh(matrix)[1][:, -1].abs()
    return float(vector[0]), float(vector[1])
