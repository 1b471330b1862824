"""Couplings by optimal transport between channels of uniform mass (POT)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from depfuse.align.coupling import Coupling
from depfuse.align.entropic import entropic
from depfuse.errors import RecipeError

SPARSE_FROM = 768  # channels from which an assignment among a few costs of each row is tried first
NEAREST = 16  # least costs of each row in it
CONTENDED_FROM = 512  # channels from which it is asked whether many rows contend for few columns
WANTED = 0.25  # of the columns, below which they do
SIMPLEX_STEPS = 10**9  # limit of pivots: none
SINKHORN_STEPS = 2000  # limit of iterations
UNEVEN = 0.05  # of a channel's mass: a plan that misses it by more has not converged


def checked(cost: Tensor) -> np.ndarray:
    """Return the cost on the host in float64; raise where an entry is not finite."""
    values = cost.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise RecipeError("a matching cost is not finite: check the parents' weights and the calibration images")
    return values


def assigned(cost: Tensor) -> Tensor:
    """Compute the permutation (n,) int64 of least cost: row i goes with column order[i].

    SciPy's shortest augmenting paths are the quickest for most costs. Where nearly all rows are cheapest in the same
    few columns (costs of low rank, such as products of one weight per channel), each path visits nearly all rows, and
    POT's network simplex takes a tenth of the time; elsewhere it takes two to four times as long.
    """
    values = checked(cost)
    values = values - values.min(0, initial=np.inf)  # changes no assignment, and the search begins nearer to its end
    if len(values) >= CONTENDED_FROM and _is_contended(values):
        import ot  # here, as in `emd`

        ones = np.ones(len(values))
        plan, log = ot.emd(ones, ones, values, numItermax=SIMPLEX_STEPS, log=True)
        order = np.asarray(plan).argmax(1).astype(np.int64)
        if log["warning"] is None and np.array_equal(np.sort(order), np.arange(len(order))):
            return torch.from_numpy(order)
    return torch.from_numpy(linear_sum_assignment(values)[1].astype(np.int64))


def _is_contended(values: np.ndarray) -> bool:
    """Tell whether many rows are cheapest in few columns, with what is constant along rows and columns or without."""
    if _wanted(values) >= WANTED:
        return False
    centred = values - values.mean(1, keepdims=True)
    centred -= centred.mean(0)
    return _wanted(centred) < WANTED


def _wanted(values: np.ndarray) -> float:
    """Compute the share of columns that some row is cheapest in; a row that is so in several counts in part for each.

    It is :math:`1 - 1 / e` where the cheapest columns are drawn at random.
    """
    cheapest = values <= values.min(1, keepdims=True)
    rows_of_column = (1.0 / cheapest.sum(1)) @ cheapest
    return float(np.minimum(rows_of_column, 1.0).sum() / len(values))


def reassigned(cost: Tensor, current: Tensor) -> Tensor:
    """Find a permutation of less cost than a known one, or of least cost; quick where `assigned` is slow.

    Large problems are solved among the few least costs of each row and the known pairs first: nearly always that gives
    the best of all, in a tenth of the time. All costs are used only where that is no better.
    """
    size = len(cost)
    if size < SPARSE_FROM or not bool(torch.isfinite(cost.sum())):
        return assigned(cost)
    near = torch.topk(cost, NEAREST, dim=1, largest=False).indices
    columns = torch.cat([near, current[:, None]], 1).sort(1).values
    first = torch.ones_like(columns, dtype=torch.bool)
    first[:, 1:] = columns[:, 1:] != columns[:, :-1]
    rows = torch.arange(size)[:, None].expand_as(columns)[first]
    entries = (cost[rows, columns[first]] - cost.min()).numpy() + 1.0  # zeros would count as absent
    begins = np.concatenate([[0], first.sum(1).cumsum(0).numpy()])
    table = csr_array((entries, columns[first].numpy(), begins), shape=(size, size))
    order = torch.from_numpy(min_weight_full_bipartite_matching(table)[1].astype(np.int64))
    each = torch.arange(size)
    after, before = float(cost[each, order].sum()), float(cost[each, current].sum())
    return order if before - after > 1e-6 * abs(before) else assigned(cost)


def emd(cost: Tensor) -> Coupling:
    r"""Compute exact optimal transport, :math:`\min_T \langle T, C \rangle` over plans with uniform marginals.

    With as many targets as sources some permutation is optimal (Birkhoff), so the problem is linear
    assignment; other shapes go to the network simplex of `ot.emd`.

    Parameters
    ----------
    cost
        (n_target, n_source).
    """
    if cost.shape[0] == cost.shape[1]:
        return Coupling(assigned(cost))
    import ot  # here, as few matchings need it, and it takes a second

    values = checked(cost)
    # The simplex calls problems with negative costs infeasible and moves nothing; a constant changes no plan.
    plan = ot.emd(*_uniform(values), values - values.min())
    return Coupling(plan=torch.from_numpy(np.asarray(plan)))


def whole(cost: Tensor, *, even: bool = True) -> Coupling:
    r"""Compute exact optimal transport in which no channel of the larger side is split.

    :math:`\min_T \langle T, C \rangle` over plans that send each channel of the larger side, n of them, whole to one of
    the m on the smaller, which takes between :math:`\lfloor n / m \rfloor` and :math:`\lceil n / m \rceil` of them. The
    vertices of these bounds are such plans, so the problem is linear assignment to copies. Widened by it, a network
    keeps its function: each new channel is a copy of one old channel, whose outgoing weights are divided among its
    copies. Equal masses would mix two channels into one wherever n / m is no whole number.

    Parameters
    ----------
    cost
        (n_target, n_source).
    even
        False to let a channel of the smaller side take any number, but at least one.
    """
    if cost.shape[0] == cost.shape[1]:
        return emd(cost)
    if cost.shape[0] < cost.shape[1]:
        return whole(cost.T, even=even).inverse()
    values = checked(cost)
    targets, sources = values.shape
    least, most = (targets // sources, -(-targets // sources)) if even else (1, targets - sources + 1)
    # Lower than any sum of costs, so that each source's first copies are all taken.
    penalised = values - 2.0 * targets * (np.abs(values).max() + 1.0)
    copies = np.concatenate([penalised] * least + [values] * (most - least), axis=1)
    rows, columns = linear_sum_assignment(copies)
    plan = np.zeros_like(values)
    plan[rows, columns % sources] = 1.0 / targets
    return Coupling(plan=torch.from_numpy(plan))


def unbalanced(cost: Tensor, strictness: float) -> Coupling:
    r"""Compute unbalanced optimal transport (Chapel et al. 2021): masses need not be met.

    Minimises :math:`\langle T, C \rangle + \rho (KL(T 1, a) + KL(T^T 1, b))` with uniform a and b, where :math:`\rho`
    is `strictness` times the mean absolute deviation of the cost, which is counted from its least entry: a channel
    similar to no other one sends, or gets, less than its share.
    """
    values = checked(cost)
    scale = float(np.abs(values - values.mean()).mean())
    if scale == 0.0:
        return Coupling(plan=torch.full(values.shape, 1.0 / values.size, dtype=torch.float64))
    import ot  # here, as in `emd`

    plan = ot.unbalanced.mm_unbalanced(*_uniform(values), (values - values.min()) / scale, strictness, div="kl")
    total = float(np.sum(plan))
    if not total > 0.0:
        raise RecipeError(f"unbalanced transport with strictness {strictness:g} moves nothing: raise it")
    return Coupling(plan=torch.from_numpy(np.asarray(plan) / total))


def in_order(targets: int, sources: int) -> Coupling:
    """Couple channels by number with equal masses; the identity where both sides have equally many."""
    if targets == sources:
        return Coupling.identity(targets)
    places = [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in (targets, sources)]
    return emd((places[0][:, None] - places[1][None, :]).square())


def sinkhorn(cost: Tensor, regularisation: float) -> Coupling:
    r"""Compute entropic optimal transport (Cuturi 2013).

    Minimises :math:`\langle T, C \rangle + \epsilon \sum_{ij} T_{ij} \log T_{ij}` with
    :math:`\epsilon` = `regularisation` times the mean absolute deviation of the cost, so that the same number means the
    same softness for every group and criterion.
    """
    values = checked(cost)
    scale = float(np.abs(values - values.mean()).mean())
    if scale == 0.0:
        size = values.shape
        return Coupling(plan=torch.full(size, 1.0 / (size[0] * size[1]), dtype=torch.float64))
    plan = entropic((values - values.min()) / scale, regularisation, SINKHORN_STEPS)
    misses = (np.abs(plan.sum(axis) * size - 1.0) for axis, size in ((1, len(values)), (0, values.shape[1])))
    limit = None
    if not max(float(miss.max()) for miss in misses) < UNEVEN:
        limit = (
            f"sinkhorn did not converge in {SINKHORN_STEPS} iterations: its best result so far is used; more"
            " regularisation converges sooner"
        )
    return Coupling(plan=torch.from_numpy(plan), not_converged=limit)


def _uniform(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.full(size, 1.0 / size) for size in cost.shape)  # type: ignore[return-value]
