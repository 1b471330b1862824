r"""Ties: channels that a cost does not distinguish, and their decision by a second cost.

Measured costs are exact up to their noise. Two channels that are silent on the images, or equal up to rounding, may
change places at no cost, and an assignment would place them by chance. The smallest example is a cost of
[[0, 0, 1], [0, 0, 1], [1, 1, 0]]: the first two channels are tied, the third one is not. Ties are found here, and a
second cost is minimised among them alone; channels that tie in the second one too stay where they are, if they can.

With an optimal assignment :math:`\pi` and costs :math:`C`, exchanging channels along a cycle of targets
:math:`i_1 \to i_2 \to \dots` costs the sum of :math:`C[i, \pi(k)] - C[i, \pi(i)]` along it. Potentials v, shortest
paths in these, make every term :math:`r_{ik} = v_i + C[i, \pi(k)] - C[i, \pi(i)] - v_k \ge 0` without changing the sum
along a cycle, so that a cycle costs no more than the noise only if each of its terms does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

ROUNDING = 1e-12  # of float64 sums, relative to the largest cost


@dataclass(frozen=True, eq=False)
class Tie:
    """Channels among which the sources may be exchanged.

    Attributes
    ----------
    rows
        (k,) int64: the target channels.
    allowed
        (k, k) bool: True if `rows[a]` may have the source that `rows[b]` has.
    """

    rows: Tensor
    allowed: Tensor


def find_ties(cost: Tensor, order: Tensor, noise: Tensor | float, allowed: Tensor | None = None) -> Iterator[Tie]:
    """Find the sets of channels that an assignment of least cost may exchange at no cost.

    Parameters
    ----------
    cost
        (n, n) float64.
    order
        (n,) int64: an assignment of least cost; row i goes with column order[i]. Without least cost, no ties are found.
    noise
        Difference up to which costs are equal, one for all or (n, n).
    allowed
        (n, n) bool: the pairs that may be; all where None.
    """
    moved = cost[:, order]
    steps = (moved - moved.diagonal()[:, None]).numpy()
    if allowed is not None:
        steps = np.where(allowed[:, order].numpy(), steps, np.inf)
    potentials = _potentials(steps)
    if potentials is None:
        return
    reduced = steps + potentials
    within = noise[:, order].numpy() if isinstance(noise, Tensor) else noise
    close = reduced <= within
    np.fill_diagonal(close, True)
    if close.sum() == len(close):
        return
    _, labels = connected_components(csr_array(close), directed=True, connection="strong")
    sizes = np.bincount(labels)
    for label in np.flatnonzero(sizes > 1):
        rows = np.flatnonzero(labels == label)
        yield Tie(torch.from_numpy(rows), torch.from_numpy(close[np.ix_(rows, rows)]))


def _potentials(steps: np.ndarray) -> np.ndarray | None:
    """Compute differences v_i - v_k (n, n) of shortest paths' lengths from anywhere; None for a negative cycle.

    A path visits each channel once, so that lengths change in as many rounds at most.
    """
    lengths = np.zeros(len(steps))
    least = ROUNDING * float(np.abs(steps[np.isfinite(steps)]).max(initial=0.0))
    for _ in range(len(steps) + 1):
        shorter = np.minimum(lengths, (lengths[:, None] + steps).min(0))
        if float((lengths - shorter).max(initial=0.0)) <= least:
            differences: np.ndarray = lengths[:, None] - lengths[None, :]
            return differences
        lengths = shorter
    return None


def break_tie(tie: Tie, cost: Tensor, home: Tensor) -> Tensor | None:
    """Decide a tie by a second cost, then by the order.

    Parameters
    ----------
    cost
        (k, k) float64: of giving `rows[a]` the source that `rows[b]` has.
    home
        (k, k) bool: whether that source has the same number as `rows[a]`.

    Returns
    -------
    Tensor
        (k,) int64: `rows[a]` gets the source that `rows[found[a]]` has; None where all stay.
    """
    size = len(tie.rows)
    stay = torch.arange(size)
    scale = float(cost.abs().max())
    noise = ROUNDING * scale
    order = _assigned(cost, tie.allowed)
    if float(cost[stay, order].sum()) >= float(cost.diagonal().sum()) - size * noise:
        order = stay
    for equal in find_ties(cost, order, noise, tie.allowed):
        chosen = order[equal.rows]
        foreign = (~home[equal.rows][:, chosen]).double()
        better = _assigned(foreign, equal.allowed)
        if float(foreign[torch.arange(len(chosen)), better].sum()) < float(foreign.diagonal().sum()):
            order = order.clone()
            order[equal.rows] = chosen[better]
    return None if torch.equal(order, stay) else order


def _assigned(cost: Tensor, allowed: Tensor) -> Tensor:
    """Compute the allowed assignment (k,) of least cost; the one that stays is allowed."""
    values = cost.numpy()
    least, most = values[allowed.numpy()].min(), values[allowed.numpy()].max()
    forbidden = (most - least + 1.0) * (len(values) + 1)
    values = np.where(allowed.numpy(), values - least, forbidden)
    return torch.from_numpy(linear_sum_assignment(values)[1].astype(np.int64))
