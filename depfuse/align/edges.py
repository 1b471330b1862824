"""Weights as edges between channels: the graph that is matched.

The smallest example is the hidden layer of `Linear(3, 4), ReLU, Linear(4, 2)`. Its four channels are nodes. The first
weight holds an edge from each of three inputs, which are fixed, to each channel; the second one an edge from each
channel to each of two outputs, which are fixed too. Between two hidden layers both ends are channels of groups, and
the similarity of an edge of target and one of source depends on the couplings at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depfuse.groups.nesting import Orbit, Part
from depfuse.groups.slots import Role

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges between the channels of two groups, or of a group and fixed nodes.

    Attributes
    ----------
    key
        The tensor that holds the edges.
    ends
        Name of the group at each end; the second is None where the nodes are fixed.
    roles
        Role of the tensor for the channels at each end.
    target, source
        (n, m, d) float32: d entries (kernel positions, repeats) of the edge between node i and node k.
    """

    key: str
    ends: tuple[str, str | None]
    roles: tuple[Role, Role | None]
    target: Tensor
    source: Tensor


def find_edges(
    roots: Sequence[Orbit], weights: set[str], target: State, source: State
) -> tuple[list[Edges], dict[str, list[Part]]]:
    """Find the edges of the groups that lie in no block and hold none.

    Parameters
    ----------
    roots
        Orbits that lie in no block.
    weights
        Names of the tensors that count.
    target, source
        State dicts.

    Returns
    -------
    edges
        Each entry of a tensor belongs to one of them at most.
    others
        Group name -> its parts of tensors that are no edges: shared with blocks, or carried on more than two axes.
    """
    carried: dict[str, list[tuple[Orbit, Part]]] = {}
    for root in roots:
        for orbit in root.walk():
            for part in orbit.parts:
                if part.key in weights:
                    carried.setdefault(part.key, []).append((root, part))
    edges: list[Edges] = []
    others: dict[str, list[Part]] = {}
    for key, entries in carried.items():
        axes = sorted({part.axis for _, part in entries})
        nested = any(root.children or part.within is not None for root, part in entries)
        if nested or len(axes) > 2:
            for root, part in entries:
                if not root.children:
                    others.setdefault(root.name, []).append(part)
        else:
            edges += _of_tensor(key, entries, axes, target[key], source[key])
    return edges, others


def _of_tensor(
    key: str, entries: Sequence[tuple[Orbit, Part]], axes: Sequence[int], target: Tensor, source: Tensor
) -> list[Edges]:
    edges: list[Edges] = []
    first, second = axes[0], axes[-1]
    if first == second:
        # The nodes at the other end are those of the other of the first two axes: inputs or outputs of the network.
        second = 1 - first if target.dim() > 1 and first < 2 else -1
    for root, part in entries:
        if part.axis == first:
            rows = part.index[0]
            for other, other_part in entries:
                if other_part.axis == second:
                    edges.append(
                        Edges(
                            key,
                            (root.name, other.name),
                            (part.role, other_part.role),
                            *(_entries(t, first, rows, second, other_part.index[0]) for t in (target, source)),
                        )
                    )
        rest = second if part.axis == first else first
        if rest < 0:
            columns = None
        else:
            taken = [other_part.index.reshape(-1) for _, other_part in entries if other_part.axis == rest]
            free = torch.ones(target.shape[rest], dtype=torch.bool)
            if taken:
                free[torch.cat(taken)] = False
            columns = torch.nonzero(free)
            if not len(columns):
                continue
        edges.append(
            Edges(
                key,
                (root.name, None),
                (part.role, None),
                *(_entries(t, part.axis, part.index[0], rest, columns) for t in (target, source)),
            )
        )
    return edges


def _entries(tensor: Tensor, first: int, rows: Tensor, second: int, columns: Tensor | None) -> Tensor:
    """Gather entries (n, m, d) of a tensor at rows (n, r) of one axis and columns (m, s) of another."""
    if columns is None:
        entries = _along(tensor, first, rows).movedim(first, 0)
        return entries.reshape(len(rows), 1, -1).float()
    entries = _along(_along(tensor, first, rows), second, columns)
    entries = entries.movedim((first, second), (0, 1)).reshape(*rows.shape, *columns.shape, -1)
    return entries.transpose(1, 2).reshape(len(rows), len(columns), -1).float()


def _along(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    """Select positions of an axis, without a copy where they are all of them in order."""
    flat = index.reshape(-1)
    if len(flat) == tensor.shape[axis] and torch.equal(flat, torch.arange(len(flat))):
        return tensor
    return tensor.index_select(axis, flat.to(tensor.device))
