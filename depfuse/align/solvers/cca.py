"""Canonical correlation analysis: mix each group's channels for the highest correlation with the target's.

The coupling is not a permutation but an invertible linear map (CCA Merge; Horoi et al. 2024, section 4). The function
stays where all operations between producers and consumers of the channels are linear and the same for all channels. A
ReLU is not: no map but a permutation commutes with it, and the match is as good as the channels' correlation.
BatchNorm's scales differ by channel, and are folded into the layers before (`fold`); biases, shifts and means are
mixed as the channels are. Other scales, of LayerNorm or of depthwise convolutions, are mixed like biases: that is exact
for permutations only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from depfuse.align.coupling import Coupling, Maps
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Implementation
from depfuse.align.statistics.pairwise import PairwiseCollector
from depfuse.align.transport import checked, emd
from depfuse.progress import work
from depfuse.recipe.solvers import Cca

DOUBT = 1e-3  # singular values below it, relative to the largest, leave their directions undetermined


def canonical_maps(
    target: Tensor, source: Tensor, cross: Tensor, regularisation: float, order: Tensor | None = None
) -> Maps:
    r"""Compute the map from the source's channels to the target's through their canonical variables.

    With the ridges :math:`\Sigma_X + \gamma_X I` and :math:`\Sigma_Y + \gamma_Y I`, where :math:`\gamma` is
    `regularisation` times the mean variance, and :math:`U S V^T` the singular value decomposition of
    :math:`\Sigma_X^{-1/2} \Sigma_{XY} \Sigma_Y^{-1/2}`, canonical variables are :math:`U^T \Sigma_X^{-1/2} x` and
    :math:`V^T \Sigma_Y^{-1/2} y`. The composition of both steps is

    .. math:: T = \Sigma_X^{1/2} U V^T \Sigma_Y^{-1/2},

    which has the inverse :math:`\Sigma_Y^{1/2} V U^T \Sigma_X^{-1/2}`. Where the source is the target's channels after
    an invertible map, such as a permutation, T undoes it. With more ridge, T is nearer to the best
    rotation for :math:`\Sigma_{XY}`.

    Directions of singular values near zero are undetermined: they are rotated as near to a permutation as possible.

    Parameters
    ----------
    target, source
        Covariances :math:`\Sigma_X` and :math:`\Sigma_Y`, (n, n) float64 each.
    cross
        :math:`\Sigma_{XY}` (n, n) between the target's channels (rows) and the source's.
    regularisation
        Above zero: channels that never vary have no inverse.
    order
        (n,) the permutation of the source for undetermined directions; without it, channels stay.
    """
    checked(cross)
    roots, inverses = zip(*(_roots(covariance, regularisation) for covariance in (target, source)), strict=True)
    left, values, right = torch.linalg.svd(inverses[0] @ cross @ inverses[1])
    determined = int((values > DOUBT * values[0]).sum())
    permutation = torch.eye(len(cross), dtype=cross.dtype)[torch.arange(len(cross)) if order is None else order]
    nearest, _, back = torch.linalg.svd(left[:, determined:].T @ permutation @ right[determined:].T)
    rotation = left[:, :determined] @ right[:determined] + left[:, determined:] @ (nearest @ back) @ right[determined:]
    return Maps(roots[0] @ rotation @ inverses[1], inverses[0] @ rotation @ roots[1])


def _roots(covariance: Tensor, regularisation: float) -> tuple[Tensor, Tensor]:
    """Compute the square root of a covariance with its ridge, and the inverse of that."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    mean = float(values.mean())
    ridge = regularisation * mean if mean > 0 else 1.0  # channels of which none ever varies stay as they are
    roots = (values.clamp_min(0.0) + ridge).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def solve(problem: MatchingProblem) -> list[Solution]:
    """Solve for maps of groups that have a tap, and permutations of blocks, groups inside them, and all others.

    Covariances at several taps of a group are added up, each relative to the target's mean variance there. A group that
    does not vary in one of the networks keeps its permutation.
    """
    settings = problem.settings_of(Cca)
    assert problem.calibration is not None
    couplings = {**problem.by_activations("pearson", emd)}
    collector = PairwiseCollector(problem.networks, problem.groups, problem.calibration, problem.settings.taps)
    covariances = collector.covariances()
    for root in work().within(problem.roots, "matching channels"):
        if root.children or root.name not in covariances:
            continue
        n = root.size
        taps = [tap / tap[:n, :n].diagonal().mean() for tap in covariances[root.name] if _vary(tap)]
        if not taps:
            continue
        joint = torch.stack(taps).sum(0)
        order = couplings[root.name].permutation
        maps = canonical_maps(joint[:n, :n], joint[n:, n:], joint[:n, n:], settings.regularisation, order)
        couplings[root.name] = Coupling(maps=maps)
    return [Solution(couplings)]


def _vary(joint: Tensor) -> bool:
    """Tell whether channels of both networks vary."""
    variances = joint.diagonal().reshape(2, -1).mean(1)
    return bool((variances > 0).all())


SOLVER = Implementation(solve)
