"""ZipIt!: the channels of all parents in one pool, zipped pair by pair, also two of one parent (Stoica et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Coupling, Couplings, Maps
from depfuse.align.problem import MatchingProblem
from depfuse.align.solution import Solution
from depfuse.align.solvers.interface import Implementation
from depfuse.align.statistics.moments import collect_moments
from depfuse.align.statistics.pairwise import PairwiseCollector
from depfuse.align.transport import checked, emd
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.nesting import find_orbits
from depfuse.recipe.sections import Align
from depfuse.recipe.solvers import ZipIt


def zipped(similarity: Tensor, parents: int, reuse: float, within: float) -> Tensor:
    """Merge the channels of all parents pair by pair until as many are left as one parent has.

    The two most similar become one, whose similarity to a third is the lower of the two, times `reuse` as soon as it
    holds as many channels as there are parents: two in the paper, where any zip does.
    A zip of two that begin with channels of the same parent is taken from that parent's budget; once this is spent,
    channels that begin with one of the parent's are zipped to each other no more, nor is anything that contains them.
    (Stoica et al. 2024, sections 4.1 and 4.3.) With more than two parents there may be nothing left to zip then: the
    budgets are ignored for one zip.

    Parameters
    ----------
    similarity
        (parents * n, parents * n) correlations, one parent's channels after the other's.
    parents
        Number of parents.
    reuse, within
        Factor of the similarity of zipped channels, and share of a parent's zips within it (alpha and beta).

    Returns
    -------
    Tensor
        (parents * n,) int64: the channel of the child, from 0 to n - 1, that each is part of; the child's channels are
        in the order of their first ones.
    """
    total = len(similarity)
    size = total // parents
    similar = similarity.double().clone().fill_diagonal_(-torch.inf)
    origin = torch.arange(total) // size
    member = torch.arange(total)
    allowed = torch.ones_like(similar, dtype=torch.bool)
    budget = [int((total - size) // parents * within)] * parents
    for _ in range(total - size):
        choice = torch.where(allowed, similar, -torch.inf)
        choice = choice if float(choice.max()) > -torch.inf else similar
        first, second = sorted(divmod(int(choice.argmax()), total))
        member[member == second] = first
        factor = reuse if int((member == first).sum()) >= parents else 1.0
        row, still = factor * torch.minimum(similar[first], similar[second]), allowed[first] & allowed[second]
        row[first] = -torch.inf
        similar[first], similar[:, first] = row, row
        similar[second], similar[:, second] = -torch.inf, -torch.inf
        allowed[first], allowed[:, first] = still, still
        parent = int(origin[first])
        if parent == int(origin[second]):
            budget[parent] -= 1
            if budget[parent] <= 0:
                of_parent = origin == parent
                allowed[of_parent[:, None] & of_parent[None]] = False
    firsts = (member == torch.arange(total)).long().cumsum(0) - 1
    return firsts[member]


def maps_of(member: Tensor, shares: Sequence[float]) -> list[Maps]:
    r"""Compute the maps of every parent into the child.

    A channel of the child is the share-weighted mean of its members; all consumers of these consume it. With
    :math:`w_p` the shares, that is :math:`M = [w_1 P_1, \dots]` and :math:`U = [C_1, \dots]^T` of the paper, where the
    child's weights are :math:`\sum_p w_p P_p W_p C_p^T`.

    Parameters
    ----------
    member
        As `zipped` gives it.
    shares
        One per parent.
    """
    size = len(member) // len(shares)
    into = torch.zeros(size, len(member), dtype=torch.float64)
    into[member, torch.arange(len(member))] = 1.0
    counts = into @ torch.tensor(shares, dtype=torch.float64).repeat_interleave(size)
    # What only parents without a share are part of is silent: they do not count anyway.
    means = into * torch.where(counts > 0, 1.0 / counts.clamp_min(1e-300), 0.0)[:, None]
    starts = range(0, len(member), size)
    return [Maps(means[:, start : start + size], into[:, start : start + size]) for start in starts]


def solve_jointly(
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    settings: Align,
    calibration: Loader,
    shares: Sequence[float],
) -> list[Couplings]:
    """Compute maps of every parent, the reference included, by the mean correlation at a group's taps.

    Blocks, groups inside them, and groups without a tap cannot be zipped: they are matched to the reference.
    """
    solver = settings.solver
    assert isinstance(solver, ZipIt)
    reference = settings.target
    order = [reference, *(number for number in range(len(models)) if number != reference)]
    ordered = [models[n] for n in order]
    covariances = PairwiseCollector(ordered, groups, calibration, settings.taps).covariances()
    roots = find_orbits(groups)
    free = [root for root in roots if root.name in covariances and not root.children]
    couplings: list[dict[str, Coupling]] = [{g.name: Coupling.identity(g.size) for g in groups.free} for _ in models]
    if len(free) < len(roots):
        moments = collect_moments(ordered, groups, calibration, settings.taps)
        for number, of_parent in zip(order[1:], moments, strict=True):
            problem = MatchingProblem(groups, (models[reference], models[number]), settings, of_parent, calibration)
            couplings[number] |= problem.by_activations("pearson", emd)
    for root in free:
        similarity = torch.stack([_correlation(tap) for tap in covariances[root.name]]).mean(0)
        member = zipped(similarity, len(models), solver.reuse, solver.within)
        for number, maps in zip(order, maps_of(member, [shares[n] for n in order]), strict=True):
            couplings[number][root.name] = Coupling(maps=maps)
    return [*couplings]


def _correlation(covariance: Tensor) -> Tensor:
    """Compute correlations; a channel that never varies is similar to no other."""
    checked(covariance)
    deviation = covariance.diagonal().clamp_min(0.0).sqrt()
    size = deviation[:, None] * deviation[None]
    return torch.where(size > 0, covariance / size.clamp_min(1e-300), 0.0)


def solve(problem: MatchingProblem) -> list[Solution]:
    """Refuse: a zip changes the reference too.

    Raises
    ------
    RecipeError
        Always.
    """
    raise RecipeError("solver zip-it zips all parents at once: it does not match one to another")


SOLVER = Implementation(solve, solve_jointly=solve_jointly)
