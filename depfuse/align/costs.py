"""Costs of matching target channel i with source channel j."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from depfuse.align.statistics.sums import Moments
from depfuse.groups.nesting import Part

NOISE = 1e-6  # relative rounding error of float32 activations after a few dozen layers
LOST = 1e-7  # of the mean square: a smaller variance is rounding of float32


def activation_cost(taps: Sequence[Moments], distance: str) -> Tensor:
    r"""Compute the cost (n_target, n_source) from a group's moments, summed over its taps, in float64.

    `cosine`: one minus :math:`E[a_i b_j] / \sqrt{E[a_i^2] E[b_j^2]}`. `pearson`: one minus the correlation of
    :math:`a_i` and :math:`b_j`, the same about the means (Li et al. 2016). `euclidean`: mean squared difference,
    :math:`E[a_i^2] + E[b_j^2] - 2 E[a_i b_j]` (Singh & Jaggi 2020, section 4). A channel that is silent (or for
    `pearson` constant) is similar to no other.

    Two more are intermediate, since trained networks differ in the best one: `cosine-pearson`, the mean of
    the two, and `scaled`, :math:`-E[a_i b_j] / (\|a_i\| \|b_j\|)^{3/4}` with norms relative to their mean square,
    which gives strong channels more weight.
    """
    return torch.stack([DISTANCES[distance](moments) for moments in taps]).sum(0)


def activation_noise(taps: Sequence[Moments], distance: str) -> Tensor:
    """Estimate the difference (n_target, n_source) up to which activation costs are equal, in float64.

    Activations are exact up to `NOISE` of their root mean square: rounding in all layers before. A correlation is the
    less exact, the less a channel varies about its mean.
    """
    return torch.stack([_noise(moments, distance) for moments in taps]).sum(0)


def _noise(moments: Moments, distance: str) -> Tensor:
    squares = moments.target_square, moments.source_square
    if distance == "euclidean":
        return NOISE * (squares[0][:, None] + squares[1][None, :]) / moments.count
    if distance == "scaled":
        sizes = [(part / part.mean().clamp_min(1e-300)) ** 0.125 for part in squares]
        return 2.0 * NOISE * sizes[0][:, None] * sizes[1][None, :]
    if distance == "cosine":
        return torch.full_like(moments.product, 2.0 * NOISE)
    ratios = []
    for total, square in zip((moments.target_sum, moments.source_sum), squares, strict=True):
        mean_square = square / moments.count
        deviation = _deviation(mean_square, total / moments.count)
        ratios.append(torch.where(deviation > 0, mean_square.sqrt() / deviation.clamp_min(1e-300), 1.0))
    return NOISE * (ratios[0][:, None] + ratios[1][None, :])


def _cosine(moments: Moments) -> Tensor:
    return 1.0 - _ratio(moments.product, moments.target_square.sqrt(), moments.source_square.sqrt())


def _scaled(moments: Moments) -> Tensor:
    target, source = moments.target_square, moments.source_square
    size = (target.mean() * source.mean()).clamp_min(1e-300).sqrt()
    return -_ratio(
        moments.product / size, *((part / part.mean().clamp_min(1e-300)) ** 0.375 for part in (target, source))
    )


def _pearson(moments: Moments) -> Tensor:
    count = moments.count
    target_mean, source_mean = moments.target_sum / count, moments.source_sum / count
    covariance = moments.product / count - target_mean[:, None] * source_mean[None, :]
    target = _deviation(moments.target_square / count, target_mean)
    source = _deviation(moments.source_square / count, source_mean)
    return 1.0 - _ratio(covariance, target, source)


def _euclidean(moments: Moments) -> Tensor:
    squares = moments.target_square[:, None] + moments.source_square[None, :]
    return (squares - 2.0 * moments.product) / moments.count


DISTANCES: dict[str, Callable[[Moments], Tensor]] = {
    "cosine": _cosine,
    "pearson": _pearson,
    "cosine-pearson": lambda moments: 0.5 * (_cosine(moments) + _pearson(moments)),
    "scaled": _scaled,
    "euclidean": _euclidean,
}


def _ratio(product: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Divide products by the two sizes, zero where a size is zero."""
    size = target[:, None] * source[None, :]
    return torch.where(size > 0, product / size.clamp_min(1e-300), 0.0)


def _deviation(mean_square: Tensor, mean: Tensor) -> Tensor:
    """Compute the standard deviation, zero where it is lost in rounding."""
    variance = mean_square - mean.square()
    return torch.where(variance > LOST * mean_square, variance, 0.0).clamp_min(0.0).sqrt()


def weight_cost(parts: Sequence[Part], target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> Tensor:
    r"""Sum squared distances between channels' weights over parts, (n_groups, n_target, n_source), in float64.

    :math:`C_{gij} = \sum_p \|A_p[g, i] - B_p[g, j]\|^2`, with A_p and B_p the part's entries of target and source
    (Ainsworth et al. 2023, section 3.2): each group of an orbit is compared with the source's at the same place. The
    source is not permuted: permute its other groups to the target's order first.
    """
    costs = [squared_distances(part.read(target[part.key]), part.read(source[part.key])) for part in parts]
    return torch.stack(costs).sum(0)


def squared_distances(target: Tensor, source: Tensor) -> Tensor:
    """Compute squared distances of rows, (..., n, k) and (..., m, k) -> (..., n, m), in float64 on the CPU."""
    target, source = target.float(), source.float()
    cost = (target @ source.mT).cpu().double().mul_(-2.0)
    cost += target.square().sum(-1).cpu().double()[..., :, None]
    cost += source.square().sum(-1).cpu().double()[..., None, :]
    return cost


def mixed_cost(activations: Tensor, weights: Tensor, share: float) -> Tensor:
    """Mix `share` of the activation cost with the rest of the weight cost, each divided by its deviation."""
    return share * standardised(activations) + (1.0 - share) * standardised(weights)


def standardised(cost: Tensor) -> Tensor:
    """Divide a cost by its standard deviation."""
    spread = cost.std(correction=0)
    return cost / spread if float(spread) > 0 else cost
