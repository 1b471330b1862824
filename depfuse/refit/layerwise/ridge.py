"""Ridge regression from Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # ridges to try, relative to the inputs' mean variance
FIRST = 2  # which of these is tried first
BLOCK = 16384  # rows multiplied at a time, in float32 before they are summed in float64
COLUMNS = 256  # columns of a block of a Gram matrix, of which one of each symmetric pair is multiplied
WIDE = 1024  # inputs from which strengths are compared by Cholesky factors in float32


@dataclass(frozen=True)
class Rows:
    """A linear system with one row per image and place.

    Attributes
    ----------
    inputs
        X (G, rows, K): the inputs of G independent groups of channels; a last column of ones is the intercept's.
    outputs
        Y (G, rows, O): the desired outputs.
    bounds
        (G, rows, O): an output is free to lie anywhere below its bound, as before a ReLU whose output shall be zero;
        -inf where it is not free. None where there are no bounds.
    """

    inputs: Tensor
    outputs: Tensor
    bounds: Tensor | None = None

    def part(self, start: int, end: int) -> Rows:
        """Select rows."""
        bounds = None if self.bounds is None else self.bounds[:, start:end]
        return Rows(self.inputs[:, start:end], self.outputs[:, start:end], bounds)

    def predict(self, weight: Tensor) -> Tensor:
        """Compute X W."""
        return self.inputs @ weight.to(self.inputs)

    def projected(self, prediction: Tensor) -> Tensor:
        """Return Y, its free entries replaced by the prediction X W as far as their bounds allow."""
        if self.bounds is None:
            return self.outputs
        free = self.bounds > -torch.inf
        return torch.where(free, torch.minimum(prediction, self.bounds), self.outputs)

    def error(self, weight: Tensor) -> float:
        """Sum the squared differences between prediction and Y, or the nearest value that the bounds allow."""
        prediction = self.predict(weight)
        return float((prediction - self.projected(prediction)).double().square().sum())


@dataclass(frozen=True)
class Solution:
    """What a ridge regression found.

    Attributes
    ----------
    weight
        W (G, K, O), float64.
    strength
        The ridge, relative to the inputs' mean variance.
    products
        X^T X (G, K, K), float64.
    """

    weight: Tensor
    strength: float
    products: Tensor

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and population variance (G, O) of X V, V (G, K - 1, O) beside an intercept of zero."""
        count = self.products[:, -1:, -1:]
        mean = (self.products[:, -1:, :-1] / count) @ weight
        square = (weight * (self.products[:, :-1, :-1] @ weight)).sum(1, keepdim=True) / count
        return mean[:, 0], (square - mean.square()).clamp_min(0.0)[:, 0]


def gram(first: Tensor, second: Tensor, *, block: int = BLOCK, columns: int = COLUMNS) -> Tensor:
    """Compute first^T second (G, K, O) of matrices with equally many rows, block by block, summed in float64."""
    total = torch.zeros(len(first), first.shape[2], second.shape[2], dtype=torch.float64, device=first.device)
    return add_gram(total, first, second, block=block, columns=columns)


def add_gram(total: Tensor, first: Tensor, second: Tensor, *, block: int = BLOCK, columns: int = COLUMNS) -> Tensor:
    """Add first^T second in place; of a matrix with itself, only blocks on and above the diagonal are multiplied."""
    symmetric = first is second and first.shape[2] > columns
    for start in range(0, first.shape[1], block):
        left, right = first[:, start : start + block], second[:, start : start + block]
        if not symmetric:
            total += left.mT @ right
            continue
        for column in range(0, first.shape[2], columns):
            chosen = slice(column, column + columns)
            total[:, chosen, column:] += left[..., chosen].mT @ left[..., column:]
    if symmetric:
        for column in range(columns, first.shape[2], columns):
            chosen = slice(column, column + columns)
            total[:, chosen, :column] = total[:, :column, chosen].mT
    return total


def ridge(
    rows: Rows,
    prior: Tensor,
    *,
    intercept: bool,
    held_out: float = 0.125,
    strengths: tuple[float, ...] = STRENGTHS,
    sweeps: int = 3,
    wide: int = WIDE,
) -> Solution:
    r"""Minimise :math:`\|XW - Y\|^2 / n + \lambda \|W - sW_0\|^2` for every group of channels.

    :math:`\lambda` is a strength times the mean variance of the inputs; a strength with the least error on held-out
    last rows, of itself and its neighbours, is chosen, and all rows are then solved with it. The scales s (one per
    output) fit the prior to the data. Entries of Y with a bound are then replaced by the prediction where that is
    lower, `sweeps` times.

    Parameters
    ----------
    rows
        X, Y and bounds of Y.
    prior
        :math:`W_0` (G, K, O).
    intercept
        True if the last column of X is the intercept's; its weight is not penalised.
    held_out
        Share of the rows that choose the strength.
    wide
        Number of inputs above which strengths are compared by factors in float32.

    Returns
    -------
    Solution
        The weight and what belongs to it.
    """
    count = rows.inputs.shape[1]
    seen = count - round(held_out * count)
    train, rest = rows.part(0, seen), rows.part(seen, count)
    covariance, cross = gram(train.inputs, train.inputs), gram(train.inputs, train.outputs)
    prior, strength = prior.double(), strengths[0]
    if len(strengths) > 1 and 0 < seen < count:
        quick = covariance.float() if covariance.shape[1] > wide else covariance
        strength = _chosen(strengths, covariance, cross, prior, rest, intercept, quick)
    covariance = add_gram(covariance, rest.inputs, rest.inputs)
    cross = add_gram(cross, rest.inputs, rest.outputs)
    start = _scaled(covariance, cross, prior, intercept)
    of_start = covariance @ start
    factor = _factor(covariance, strength, intercept)
    solution = start + torch.cholesky_solve(cross - of_start, factor)
    for _ in range(sweeps if rows.bounds is not None else 0):
        cross = gram(rows.inputs, rows.projected(rows.predict(solution)))
        solution = start + torch.cholesky_solve(cross - of_start, factor)
    return Solution(solution, strength, covariance)


def _chosen(
    strengths: tuple[float, ...],
    covariance: Tensor,
    cross: Tensor,
    prior: Tensor,
    rest: Rows,
    intercept: bool,
    quick: Tensor,
) -> float:
    """Choose the strength with the least error on other rows: from `FIRST` on, as long as the next one is better.

    `quick` is the covariance as it is factorised for the choice.
    """
    start = _scaled(covariance, cross, prior, intercept)
    residual = cross - covariance @ start
    errors: dict[int, float] = {}

    def error(number: int) -> float:
        if number not in errors:
            factor = _factor(quick, strengths[number], intercept)
            errors[number] = rest.error(start + torch.cholesky_solve(residual.to(factor), factor))
        return errors[number]

    number = min(FIRST, len(strengths) - 1)
    for step in (1, -1):
        before = number
        while 0 <= number + step < len(strengths) and error(number + step) < error(number):
            number += step
        if number != before:
            break
    return strengths[number]


def _scaled(covariance: Tensor, cross: Tensor, prior: Tensor, intercept: bool) -> Tensor:
    """Scale the prior to the data, by one factor per output, with the best intercept."""
    if intercept:
        count = covariance[:, -1:, -1:]
        means, sums = covariance[:, -1:] / count, cross[:, -1:]
        prior = torch.cat([prior, torch.zeros_like(prior[:, :1])], 1)
        covariance, cross = covariance - means.mT @ means * count, cross - means.mT @ sums
    squares = (prior * (covariance @ prior)).sum(1, keepdim=True)
    scale = ((prior * cross).sum(1, keepdim=True) / squares.clamp_min(1e-300)).clamp_min(0.0)
    start = prior * torch.where(squares > 0, scale, torch.zeros_like(scale))
    if intercept:
        start[:, -1:] = sums / count - means @ start
    return start


def _factor(covariance: Tensor, strength: float, intercept: bool) -> Tensor:
    """Compute the Cholesky factor of the Gram matrix with its ridge."""
    variances = covariance.diagonal(dim1=1, dim2=2).clone()
    if intercept:
        variances = variances - covariance[:, -1].square() / covariance[:, -1:, -1]
        variances[:, -1] = 0.0
    mean = variances.clamp_min(0.0).sum(1, keepdim=True) / (variances.shape[1] - intercept)
    # Inputs that do not vary have no scale of their own.
    penalty = (strength * mean).clamp_min(max(1e-12 * float(mean.max()), 1e-12)).repeat(1, variances.shape[1])
    if intercept:
        penalty[:, -1] = 0.0
    while True:
        damped = covariance.clone()
        damped.diagonal(dim1=1, dim2=2).add_(penalty)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return factor
        # Rounding can leave a Gram matrix slightly indefinite; more ridge makes up for it.
        penalty = penalty * 10.0
