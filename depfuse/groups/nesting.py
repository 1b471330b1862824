"""Nested groups as trees: inner groups that correspond to one another when blocks are exchanged.

The smallest example is a grouped convolution with two blocks of three channels each. Its block group has two units.
Inside block 0 lies an inner group of three output channels, inside block 1 another one: together they are one *orbit*,
since exchanging the blocks carries one into the other. The flat position `block * 3 + channel` numbers all channels of
the orbit, and a permutation of the blocks and of what is inside each is one permutation of flat positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from depfuse.groups.channel_group import ChannelGroup, siblings
from depfuse.groups.slots import Role, Slot


@dataclass(frozen=True, eq=False)
class Part:
    """Positions of an axis that belong to an orbit's channels and to no group inside them.

    Attributes
    ----------
    key, axis, role
        As in `Slot`.
    index
        (n_groups, n_channels, repeats) int64.
    within
        None, or (axis, positions (n_groups, n_positions)): group g covers only these positions of another axis.
    """

    key: str
    axis: int
    index: Tensor
    role: Role
    within: tuple[int, Tensor] | None = None

    def read(self, tensor: Tensor) -> Tensor:
        """Read entries, group and channel first: (n_groups, n_channels, repeats * size of all other axes)."""
        groups, size, _ = self.index.shape
        index = self.index.to(tensor.device)
        if self.within is None:
            return tensor.index_select(self.axis, index.reshape(-1)).movedim(self.axis, 0).reshape(groups, size, -1)
        rows = self.within[1].to(tensor.device)
        part = tensor.movedim((self.within[0], self.axis), (0, 1))[rows[:, :, None], index.reshape(groups, 1, -1)]
        return part.reshape(groups, rows.shape[1], size, -1).transpose(1, 2).reshape(groups, size, -1)

    def permute(self, tensor: Tensor, moved: Tensor) -> Tensor:
        """Copy with the entries of flat position moved[p] at flat position p.

        With `within`, the rows are taken to have been moved already: only the order inside them changes.
        """
        groups = len(self.index)
        index, moved = self.index.to(tensor.device), moved.to(tensor.device)
        if self.within is None:
            order = torch.arange(tensor.shape[self.axis], device=tensor.device)
            order[index.reshape(-1)] = index.flatten(0, 1)[moved].reshape(-1)
            return tensor.index_select(self.axis, order)
        rows = self.within[1].to(tensor.device)[:, :, None]
        result = tensor.clone()
        view = result.movedim((self.within[0], self.axis), (0, 1))
        view[rows, index.reshape(groups, 1, -1)] = view[rows, index.flatten(0, 1)[moved].reshape(groups, 1, -1)]
        return result


@dataclass(frozen=True, eq=False)
class Orbit:
    """Groups that exchanges of blocks map to one another: one for each block around them.

    A group that lies in no block is an orbit of its own.

    Attributes
    ----------
    groups
        (n_groups,) in the order of the flat positions of the blocks around them.
    parts
        Parts of the orbit's channels; for a block group, those that no inner group holds.
    children
        Orbits of the inner groups; empty where the channels are not blocks.
    """

    groups: tuple[ChannelGroup, ...]
    parts: tuple[Part, ...]
    children: tuple[Orbit, ...] = field(default=())

    @property
    def name(self) -> str:
        """Name of the first group."""
        return self.groups[0].name

    @property
    def size(self) -> int:
        """Channels of each group."""
        return self.groups[0].size

    def walk(self) -> Iterator[Orbit]:
        """Yield the orbit and all orbits inside it, blocks first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def stay(self, blocks: Tensor) -> Tensor:
        """Compute flat positions (n_groups * size,) that carry each group whole, given where its block comes from."""
        return (blocks[:, None] * self.size + torch.arange(self.size)).reshape(-1)

    def permute(self, state: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Permute a state dict by `moved` (orbit name -> flat positions (n_groups * size,)) for all of the walk."""
        result = dict(state)
        parts = [(orbit.name, part) for orbit in self.walk() for part in orbit.parts]
        for name, part in sorted(parts, key=lambda entry: entry[1].within is not None):
            if not torch.equal(moved[name], torch.arange(len(moved[name]))):
                result[part.key] = part.permute(result[part.key], moved[name])
        return result


def find_orbits(groups: Iterable[ChannelGroup]) -> tuple[Orbit, ...]:
    """Find the orbits of the free groups that lie in no free block, each with all that is inside it.

    Groups are frozen and every averaging needs their orbits, so those of the last few networks are cached.

    Parameters
    ----------
    groups
        All groups, fixed ones included; the orbits come in their order.
    """
    return _find_orbits(tuple(groups))


@lru_cache(maxsize=8)
def _find_orbits(groups: tuple[ChannelGroup, ...]) -> tuple[Orbit, ...]:
    gathered = [orbit for orbit in siblings(groups) if orbit[0].fixed is None]
    number_of = {group.name: number for number, orbit in enumerate(gathered) for group in orbit}
    by_name = {group.name: group for group in groups}
    children: dict[int, list[int]] = {}
    roots = []
    for number, orbit in enumerate(gathered):
        inside = orbit[0].inside
        while inside is not None and by_name[inside[0]].fixed is not None:
            inside = by_name[inside[0]].inside
        if inside is None:
            roots.append(number)
        else:
            children.setdefault(number_of[inside[0]], []).append(number)

    def build(number: int) -> Orbit:
        inner = tuple(build(child) for child in children.get(number, ()))
        return Orbit(tuple(gathered[number]), tuple(_parts(gathered[number], inner)), inner)

    return tuple(build(number) for number in roots)


def _parts(groups: Sequence[ChannelGroup], inner: Sequence[Orbit]) -> Iterator[Part]:
    """Collect the positions that the groups' slots hold and no inner orbit does."""
    below = [part for child in inner for orbit in child.walk() for part in orbit.parts]
    for slots in zip(*(group.slots for group in groups), strict=True):
        key, axis = slots[0].key, slots[0].axis
        index = torch.stack([slot.index for slot in slots])
        # All of a tree on this axis; what `within` limits is no part of the block's own axis, but of its rows.
        alike = [
            part
            for part in below
            if part.key == key and part.axis == axis and (part.within is None) == (slots[0].within is None)
        ]
        if alike:
            index = torch.stack([without(slot.index, _held(slot, alike)) for slot in slots])
        if index.shape[2]:
            within = None
            if slots[0].within is not None:
                rows = [slot.within[1] for slot in slots if slot.within is not None]
                within = slots[0].within[0], torch.stack(rows)
            yield Part(key, axis, index, slots[0].role, within)


def _held(slot: Slot, parts: Sequence[Part]) -> Tensor:
    """Collect the positions that parts hold on a slot's axis, in its rows."""
    held = [torch.zeros(0, dtype=torch.int64)]
    for part in parts:
        if slot.within is None or part.within is None:
            held.append(part.index.reshape(-1))
        else:
            held.append(part.index[torch.isin(part.within[1], slot.within[1]).any(1)].reshape(-1))
    return torch.cat(held)


def without(index: Tensor, held: Tensor) -> Tensor:
    """Remove the held positions from an index (..., repeats); equally many must remain in each row."""
    remaining = ~torch.isin(index, held)
    return index[remaining].reshape(*index.shape[:-1], int(remaining.sum()) // max(index[..., 0].numel(), 1))
