r"""Invariants of weights under any order of the other groups: sorted entries.

A weight matrix's row for a group's channel i depends on the order of the channels at its other end. The multiset of its
entries does not, and the squared distance of two sorted rows is the minimum over all orders at the other end:
:math:`\min_\pi \sum_k (A_{ik} - B_{j \pi(k)})^2`. With it as cost, assignment gives the Gilmore-Lawler bound of the
quadratic assignment problem (Gilmore 1962; Lawler 1963). A network and its permuted copy agree in it exactly, unlike in
any cost that leaves the other groups unpermuted. The smallest example is `Linear(3, 4), Linear(4, 4), Linear(4, 2)`:
rows of the first weight, sorted rows of the second one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from depfuse.align.edges import Edges
from depfuse.align.problem import MatchingProblem
from depfuse.align.transport import assigned
from depfuse.align.trees import Placement
from depfuse.groups.nesting import Orbit


def by_invariants(problem: MatchingProblem) -> dict[str, Placement]:
    """Match the groups that hold no blocks by their weights' invariants; return root name -> placement.

    For criterion `mixture`, activations count as well, by the recipe's share.
    """
    return {
        root.name: {root.name: assigned(problem.mixed(root.name, invariant_cost(problem, root)))}
        for root in problem.roots
        if not root.children
    }


def invariant_cost(problem: MatchingProblem, root: Orbit) -> Tensor:
    """Compute the cost (n, n), float64 on the CPU: least squared distance over the other groups' orders."""
    total = torch.zeros(root.size, root.size, dtype=torch.float64)
    for edges in problem.edges:
        for end in (0, 1):
            if edges.ends[end] == root.name:
                total += _distances(*_sorted(edges, end))
    for part in problem.beside_edges.get(root.name, ()):
        total += _distances(*(_in_order(part.read(state[part.key])[0]) for state in (problem.target, problem.source)))
    return total


def _sorted(edges: Edges, end: int) -> tuple[Tensor, Tensor]:
    """Arrange rows (n, d * m) of target and source channels at one end, sorted for each d unless the other is fixed."""
    target, source = (t.transpose(1, 2) if end == 0 else t.permute(1, 2, 0) for t in (edges.target, edges.source))
    if edges.ends[1 - end] is not None:
        target, source = _in_order(target), _in_order(source)
    return target.flatten(1), source.flatten(1)


def _in_order(entries: Tensor) -> Tensor:
    """Sort along the last dimension; NumPy does so in vector registers, which takes a twentieth of torch's time."""
    return torch.from_numpy(np.sort(entries.detach().float().cpu().numpy(), axis=-1))


def _distances(target: Tensor, source: Tensor) -> Tensor:
    """Compute squared distances between rows, their products in float32.

    From the mean row, which nearly all of a sorted row is: beside it, rounding would hide how rows differ.
    """
    centre = target.mean(0)
    target, source = (rows.sub(centre).float().cpu() for rows in (target, source))
    cost = (target @ source.T).double().mul_(-2.0)
    squares = (torch.einsum("nk,nk->n", rows, rows).double() for rows in (target, source))
    return cost.add_(next(squares)[:, None]).add_(next(squares))
