"""Trees: blocks and the groups inside them, matched jointly.

Blocks cannot be matched by comparing their channels in the order of each parent. The cost of a pair of blocks is the
least cost of matching the channels inside them: an assignment problem between blocks whose costs are assignment
problems between channels, to any depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from depfuse.align.costs import squared_distances
from depfuse.align.transport import checked
from depfuse.groups.nesting import Orbit, Part

State = Mapping[str, Tensor]
Placement = dict[str, Tensor]  # orbit name -> where each flat position comes from
LARGEST_TRIED_OUT = 4  # channels up to which all permutations are tried, in one tensor: 24 of them


def assignments(costs: Tensor) -> Tensor:
    """Compute least-cost permutations (n_problems, n) of as many problems (n_problems, n_target, n_source)."""
    values = torch.from_numpy(checked(costs))
    size = values.shape[-1]
    if size <= LARGEST_TRIED_OUT:
        orders = torch.tensor(list(itertools.permutations(range(size))))
        totals = values[:, torch.arange(size), orders].sum(-1)
        return orders[totals.argmin(1)]
    return torch.stack([torch.from_numpy(linear_sum_assignment(problem)[1]) for problem in values.numpy()])


@dataclass(frozen=True)
class Shared:
    """A tensor that several orbits of a tree carry on different axes, as a grouped convolution's weight.

    The cost of placing the channels of one of them depends on the placement of the others'.

    Attributes
    ----------
    owner
        Name of the smallest orbit of blocks that holds all of them.
    slot
        The blocks in the tensor as a whole.
    parts
        (orbit name, part) of each, blocks before the orbits inside them.
    counted
        Those of them by which their orbits' channels are matched.
    scale
        Factor of the squared distances.
    """

    key: str
    owner: str
    slot: Part
    parts: tuple[tuple[str, Part], ...]
    counted: tuple[tuple[str, Part], ...]
    scale: float = 1.0

    def arranged(self, tensor: Tensor, placed: Mapping[str, Tensor]) -> Tensor:
        """Arrange the source's tensor with its channels where they are placed."""
        for name, part in self.parts:
            if name in placed:
                tensor = part.permute(tensor, placed[name])
        return tensor

    def along(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over each block, (n_groups * n_blocks,)."""
        return self.slot.read(tensor).double().sum(-1).reshape(-1).cpu() * self.scale


@dataclass(frozen=True)
class TreeCosts:
    """Costs of placing the channels of a block group and of all groups inside it.

    Attributes
    ----------
    alone
        Orbit name -> (n_groups * size, n_groups * size) cost between flat positions of target and source that does not
        depend on the other orbits.
    shared
        Tensors whose cost does depend on them.
    """

    alone: Mapping[str, Tensor]
    shared: Sequence[Shared]
    target: State
    source: State

    def scaled(self, factor: float) -> TreeCosts:
        """Multiply all costs by a factor."""
        alone = {name: cost * factor for name, cost in self.alone.items()}
        return replace(self, alone=alone, shared=[replace(s, scale=s.scale * factor) for s in self.shared])

    def with_costs(self, others: Mapping[str, Tensor]) -> TreeCosts:
        """Add further costs by orbit name."""
        alone = dict(self.alone)
        for name, cost in others.items():
            alone[name] = alone[name] + cost if name in alone else cost
        return replace(self, alone=alone)

    def spread(self, orbit: Orbit) -> float:
        """Compute the mean standard deviation of the costs of innermost channels, unmoved."""
        placed = unmoved_placement(orbit)
        deviations = [
            float(self.of_channels(below, torch.arange(len(below.groups)), placed).std(correction=0))
            for below in orbit.walk()
            if not below.children
        ]
        return sum(deviations) / len(deviations)

    def of_blocks(self, orbit: Orbit, placed: Placement) -> Tensor:
        """Compute the cost of each block (n_groups * n_blocks,) with everything in it where it is placed."""
        total = self._alone(orbit, placed)
        for shared in self.shared:
            if shared.owner == orbit.name:
                arranged = shared.arranged(self.source[shared.key], placed)
                total = total + shared.along((self.target[shared.key].float() - arranged.float()).square())
        for child in orbit.children:
            inner = self.of_blocks(child, placed) if child.children else self._alone(child, placed)
            total = total + inner.reshape(len(total), -1).sum(1)
        return total

    def _alone(self, orbit: Orbit, placed: Placement) -> Tensor:
        cost = self.alone.get(orbit.name)
        if cost is None:
            return torch.zeros(len(placed[orbit.name]), dtype=torch.float64)
        return cost.gather(1, placed[orbit.name][:, None])[:, 0]

    def of_channels(self, orbit: Orbit, origin: Tensor, placed: Placement) -> Tensor:
        """Compute the cost (n_groups, n_target, n_source) of an orbit's channels, group g from group origin[g].

        A shared tensor counts where the others that it depends on are placed.
        """
        groups, size = len(origin), orbit.size
        cost = torch.zeros(groups, size, size, dtype=torch.float64)
        if orbit.name in self.alone:
            table = self.alone[orbit.name].reshape(groups, size, groups, size)
            cost = cost + table[torch.arange(groups), :, origin, :]
        placed = {**placed, orbit.name: orbit.stay(origin)}
        for shared in self.shared:
            if any(name not in placed for name, _ in shared.parts):
                continue
            for name, part in shared.counted:
                if name == orbit.name:
                    arranged = part.read(shared.arranged(self.source[shared.key], placed))
                    cost = cost + squared_distances(part.read(self.target[shared.key]), arranged) * shared.scale
        return cost


def match_tree(
    costs: TreeCosts, orbit: Orbit, origin: Tensor | None = None, placed: Placement | None = None
) -> Placement:
    r"""Place the channels of an orbit and all inside it at least cost, group g's coming from group origin[g].

    For channels, that is :math:`\min_\pi \sum_c C[c, \pi(c)]`. For blocks it is the same with
    :math:`C[i, j]` the cost of block i of the target and block j of the source with everything inside them matched.
    All pairs (i, i + t) are matched together, for each t in turn, so that no loop runs over pairs.

    Where orbits share a tensor, they are matched one after the other, then once more with the others in place; the
    cost of a pair of blocks is exact for what was found, which need not be the least.

    Returns
    -------
    dict
        `placed` and the placement of the orbit and of all inside it.
    """
    origin = torch.zeros(1, dtype=torch.int64) if origin is None else origin
    placed = {} if placed is None else placed
    groups, size = len(origin), orbit.size
    if not orbit.children:
        order = assignments(costs.of_channels(orbit, origin, placed))
        return {**placed, orbit.name: (origin[:, None] * size + order).reshape(-1)}
    inner = [below.name for below in orbit.walk() if below is not orbit]
    around = {name: place for name, place in placed.items() if name not in inner}
    depends = any(name in inner for shared in costs.shared for name, _ in shared.parts)
    blocks = torch.arange(size)
    table = torch.empty(groups, size, size, dtype=torch.float64)
    trials: list[Placement] = []
    for shift in range(size):
        units = orbit.stay(origin).reshape(groups, size).roll(-shift, 1).reshape(-1)
        trial = {**around, orbit.name: units}
        for _ in range(2 if depends else 1):
            for child in orbit.children:
                trial = match_tree(costs, child, units, trial)
        table[:, blocks, (blocks + shift) % size] = costs.of_blocks(orbit, trial).reshape(groups, size)
        trials.append(trial)
    order = assignments(table)
    shifts = ((order - blocks) % size).reshape(-1)
    result = {**around, orbit.name: (origin[:, None] * size + order).reshape(-1)}
    for name in inner:
        tried = torch.stack([trial[name].reshape(groups * size, -1) for trial in trials])
        result[name] = tried[shifts, torch.arange(groups * size)].reshape(-1)
    return result


def unmoved_placement(orbit: Orbit) -> Placement:
    """Return the placement that moves nothing."""
    return {below.name: torch.arange(len(below.groups) * below.size) for below in orbit.walk()}


def compose_placements(first: Placement, second: Placement) -> Placement:
    """Compose two placements, one after the other."""
    return {name: first[name][order] for name, order in second.items()}


def weight_tree_costs(orbit: Orbit, target: State, source: State, usable: Callable[[str, Part], bool]) -> TreeCosts:
    """Compute squared distances between the weights of a tree of blocks, the source unmoved.

    Parameters
    ----------
    usable
        (orbit name, part) -> True if the part counts.
    """
    parts = [(below.name, part) for below in orbit.walk() for part in below.parts]
    axes: dict[str, set[int]] = {}
    for _, part in parts:
        axes.setdefault(part.key, set()).add(part.axis)
    alone: dict[str, Tensor] = {}
    for name, part in parts:
        if len(axes[part.key]) == 1 and usable(name, part):
            both = [part.read(state[part.key]).flatten(0, 1) for state in (target, source)]
            cost = squared_distances(*both)
            alone[name] = alone[name] + cost if name in alone else cost
    shared = []
    for key, axes_of_key in axes.items():
        carried = sorted(((n, p) for n, p in parts if p.key == key), key=lambda entry: entry[1].within is not None)
        counted = tuple(entry for entry in carried if usable(*entry))
        if len(axes_of_key) > 1 and counted:
            owner = _owner(orbit, {name for name, _ in carried})
            shared.append(Shared(key, owner.name, whole_slot(owner, key), tuple(carried), counted))
    return TreeCosts(alone, shared, target, source)


def _owner(orbit: Orbit, names: set[str]) -> Orbit:
    """Find the smallest orbit whose walk holds all the names."""
    for child in orbit.children:
        if names <= {below.name for below in child.walk()}:
            return _owner(child, names)
    return orbit


def whole_slot(orbit: Orbit, key: str) -> Part:
    """Return the slot of a tensor with all of the orbit's channels, inner ones included."""
    slots = [next(slot for slot in group.slots if slot.key == key) for group in orbit.groups]
    return Part(key, slots[0].axis, torch.stack([slot.index for slot in slots]), slots[0].role)
