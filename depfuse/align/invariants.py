r"""Invariants of weights under any order of the other groups: sorted entries.

A weight matrix's row for a group's channel i depends on the order of the channels at its other end. The multiset of its
entries does not, and the squared distance of two sorted rows is the minimum over all orders at the other end:
:math:`\min_\pi \sum_k (A_{ik} - B_{j \pi(k)})^2`. With it as cost, assignment gives the Gilmore-Lawler bound of the
quadratic assignment problem (Gilmore 1962; Lawler 1963). A network and its permuted copy agree in it exactly, unlike in
any cost that leaves the other groups unpermuted. The smallest example is `Linear(3, 4), Linear(4, 4), Linear(4, 2)`:
rows of the first weight, sorted rows of the second one.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    squares = torch.zeros(2, root.size, dtype=torch.float64)
    for target, source in _rows(problem, root):
        # From the mean row, which nearly all of a sorted row is: beside it, rounding would hide how rows differ.
        centre = target.mean(0)
        target, source = target.sub_(centre), source.sub_(centre)
        total.add_(target @ source.T, alpha=-2.0)
        for sums, rows in zip(squares, (target, source), strict=True):
            sums += torch.linalg.vector_norm(rows, dim=1).double().square()
    return total.add_(squares[0, :, None]).add_(squares[1])


def _rows(problem: MatchingProblem, root: Orbit) -> Iterator[tuple[Tensor, Tensor]]:
    """Arrange what each tensor has of a root's target and source channels, (n, d * m) float32 copies on the CPU."""
    for edges in problem.edges:
        for end in (0, 1):
            if edges.ends[end] == root.name:
                yield _sorted(edges, end)
    for part in problem.beside_edges.get(root.name, ()):
        target, source = (part.read(state[part.key])[0] for state in (problem.target, problem.source))
        yield _in_order(target), _in_order(source)


def _sorted(edges: Edges, end: int) -> tuple[Tensor, Tensor]:
    """Arrange rows (n, d * m) of target and source channels at one end, sorted for each d unless the other is fixed."""
    target, source = (t.transpose(1, 2) if end == 0 else t.permute(1, 2, 0) for t in (edges.target, edges.source))
    arranged = _in_order if edges.ends[1 - end] is not None else _copied
    return arranged(target).flatten(1), arranged(source).flatten(1)


def _copied(entries: Tensor) -> Tensor:
    return entries.detach().to("cpu", torch.float32, copy=True)


def _in_order(entries: Tensor) -> Tensor:
    """Sort along the last dimension; NumPy does so in vector registers, which takes a twentieth of torch's time."""
    return torch.from_numpy(np.sort(entries.detach().float().cpu().numpy(), axis=-1))
