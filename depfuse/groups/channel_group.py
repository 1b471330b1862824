"""Channel groups as plain data: which positions of which tensors belong to one channel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from depfuse.groups.slots import Slot, Tap
from depfuse.text import counted, few

MOST_SIZES, MOST_FIXED = 6, 4  # sizes, and names of fixed groups, in a summary


@dataclass(frozen=True, eq=False, repr=False)
class ChannelGroup:
    """Tensor axes that must be permuted together for the network's function to stay the same.

    The smallest example is the hidden layer of `Linear(3, 4), ReLU, Linear(4, 2)`: channel c is row c
    of the first weight, entry c of its bias and column c of the second weight, so the group has three
    slots. With a skip connection, every layer that writes to or reads from the stream joins one group.

    The channels of a *block group* are whole blocks of positions: the blocks of a grouped convolution, attention heads,
    the groups of a GroupNorm. The positions inside one block form *inner groups*, for which `inside` names the block
    group and the number of the block. When the blocks are permuted, the positions of an inner group move along: an
    inner group is named by the place of its block, not by its contents.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    taps: tuple[Tap, ...] = ()
    fixed: str | None = None
    inside: tuple[str, int] | None = None

    def permute(self, state: Mapping[str, Tensor], permutation: Tensor) -> dict[str, Tensor]:
        """Permute a state dict: channel c of the group takes the entries of channel permutation[c]."""
        result = dict(state)
        for slot in self.slots:
            result[slot.key] = slot.permute(result[slot.key], permutation)
        return result

    def __repr__(self) -> str:
        fixed = f", fixed: {self.fixed}" if self.fixed else ""
        return (
            f"ChannelGroup({self.name!r}, {counted(self.size, 'channel')}, {counted(len(self.slots), 'slot')}{fixed})"
        )

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.size} channels" + (f", fixed: {self.fixed}" if self.fixed else "")]
        for slot in self.slots:
            repeats = f" x {slot.index.shape[1]}" if slot.index.shape[1] > 1 else ""
            part = "" if slot.within is None else f", {len(slot.within[1])} positions of axis {slot.within[0]}"
            lines.append(f"  {slot.role:8s} {slot.key} axis {slot.axis}{repeats}{part}")
        if self.taps:
            lines.append("  taps     " + ", ".join(f"{tap.module or 'network'} ({tap.side})" for tap in self.taps))
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class ChannelGroups:
    """All channel groups of one network, in the order in which the network computes them.

    Attributes
    ----------
    groups
        Every group, free and fixed. A block group comes before its inner groups, so that applying group after group
        moves the blocks first and then their contents.
    fixed_tensors
        State-dict key -> reason, for each tensor that no free group permutes.
    parameters
        State-dict key -> shape, of every parameter.
    proof_error
        Largest relative change of the output under random permutations of all free groups at once;
        None before the proof.
    auxiliary
        Names of the modules that run auxiliary heads in training mode only ('' is the network itself). The groups
        hold in both modes.
    both_ways
        Whether the forward pass decides something by the inputs alone; the groups hold whatever it decides.
    """

    groups: tuple[ChannelGroup, ...]
    fixed_tensors: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    proof_error: float | None = None
    auxiliary: tuple[str, ...] = ()
    both_ways: bool = False

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups whose channels may be permuted."""
        return tuple(group for group in self.groups if group.fixed is None)

    @property
    def count(self) -> int:
        """Number of free groups."""
        return len(self.free)

    @property
    def free_channels(self) -> int:
        """Number of channels in the free groups."""
        return sum(group.size for group in self.free)

    @property
    def fixed(self) -> dict[str, str]:
        """Name -> reason, for each fixed group."""
        return {group.name: group.fixed for group in self.groups if group.fixed is not None}

    @property
    def covered_share(self) -> float:
        """Share of the network's parameters in at least one free group, 0 to 1."""
        return self.share_covered(self.parameters)

    def share_covered(self, keys: Iterable[str]) -> float:
        """Compute the share of these parameters' entries along at least one axis of a free group, 0 to 1."""
        uncovered = self._uncovered()
        sizes = {key: math.prod(self.parameters[key]) for key in keys}
        total = sum(sizes.values())
        return sum(size * (1.0 - uncovered.get(key, 1.0)) for key, size in sizes.items()) / total if total else 0.0

    def uncovered_entries(self) -> dict[str, float]:
        """Map state-dict key -> number of entries of each parameter that no free group moves, where there are any."""
        uncovered = self._uncovered()
        entries = {key: math.prod(shape) * uncovered.get(key, 1.0) for key, shape in self.parameters.items()}
        return {key: count for key, count in entries.items() if count > 0.0}

    def _uncovered(self) -> dict[str, float]:
        """Map state-dict key -> share of the tensor's entries that no free group moves, where that is not 1."""
        along: dict[tuple[str, int], float] = {}  # (key, axis) -> share of the axis that lies in free groups
        for group in self.free:
            for slot in group.slots:
                shape = self.parameters.get(slot.key)
                if shape is None:
                    continue
                share = slot.index.numel() / shape[slot.axis]
                if slot.within is not None:
                    share *= len(slot.within[1]) / shape[slot.within[0]]
                along[slot.key, slot.axis] = along.get((slot.key, slot.axis), 0.0) + share
        uncovered: dict[str, float] = {}
        for (key, _), share in along.items():
            uncovered[key] = uncovered.get(key, 1.0) * max(0.0, 1.0 - share)
        return uncovered

    def misfit(self, parameters: Mapping[str, Tensor]) -> str | None:
        """Say which parameter shows that the groups are of another network; return None where all match in size.

        Sizes are compared along the axes of free groups: what a network predicts may be other labels.
        """
        for key in (*self.parameters, *parameters):
            if key not in parameters or key not in self.parameters:
                return f"{key} is in one of them only"
        for slot in (slot for group in self.free for slot in group.slots if slot.key in self.parameters):
            expected, size = (
                int(shape[slot.axis]) for shape in (self.parameters[slot.key], parameters[slot.key].shape)
            )
            if expected != size:
                return f"axis {slot.axis} of {slot.key} has {size} positions, not {expected}"
        return None

    def fix(self, reasons: Mapping[str, str]) -> ChannelGroups:
        """Copy with the groups in `reasons` fixed, and with them the tensors that only they moved.

        Where an inner group of free blocks is fixed, so are the corresponding ones in the other blocks: else exchanging
        the blocks would bring free channels to places where they are fixed.
        """
        extended = dict(reasons)
        for orbit in siblings(self.groups):
            why = next((reasons[group.name] for group in orbit if group.name in reasons), None)
            for group in orbit if why is not None else ():
                extended.setdefault(group.name, why)  # type: ignore[arg-type]
        groups = tuple(
            replace(group, fixed=extended[group.name]) if group.name in extended else group for group in self.groups
        )
        free = {slot.key for group in groups if group.fixed is None for slot in group.slots}
        left = {
            slot.key: extended[group.name]
            for group in self.free
            if group.name in extended
            for slot in group.slots
            if slot.key not in free
        }
        return replace(self, groups=groups, fixed_tensors={**left, **self.fixed_tensors})

    def summary(self) -> str:
        """Summarise the groups in a line: number, sizes, share of the parameters, proof, what is fixed.

        `print` of the groups shows every member of each.
        """
        counts = Counter(group.size for group in self.free)
        sizes = [f"{count} x {size}" for size, count in counts.items()]
        shown = few(sizes, MOST_SIZES)
        parts = [f"{counted(self.count, 'free group')}{f' ({shown})' if shown else ''}"]
        parts.append(f"{counted(self.free_channels, 'channel')}")
        parts.append(f"{self.covered_share:.1%} of the parameters")
        parts.append("not proved" if self.proof_error is None else f"proved to {self.proof_error:.0e}")
        if self.fixed:
            names = list(self.fixed)
            rest = f" and {len(names) - MOST_FIXED} more" if len(names) > MOST_FIXED else ""
            parts.append(f"fixed: {', '.join(names[:MOST_FIXED])}{rest}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"ChannelGroups({self.summary()})"

    def __str__(self) -> str:
        parts = [str(group) for group in self.groups]
        parts.append(
            f"{self.count} free groups, {self.free_channels} channels, "
            f"{self.covered_share:.1%} of the parameters in a free group"
        )
        return "\n".join(parts)


def random_permutations(groups: ChannelGroups, seed: int) -> dict[str, Tensor]:
    """Draw a permutation (n_channels,) per free group from `seed`; never the identity, which proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    permutations = {}
    for group in groups.free:
        permutation = torch.randperm(group.size, generator=generator)
        permutations[group.name] = permutation if _moves(permutation) else permutation.roll(1)
    return permutations


def _moves(permutation: Tensor) -> bool:
    return not torch.equal(permutation, torch.arange(len(permutation)))


def siblings(groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    """List the groups of each orbit, fixed groups inside free blocks included, in the order of the flat positions."""
    by_name = {group.name: group for group in groups}
    order = _order_in_block(groups)
    roles: dict[str, Hashable] = {}
    places: dict[str, int] = {}

    def resolve(group: ChannelGroup) -> None:
        if group.name in roles:
            return
        roles[group.name], places[group.name] = group.name, 0
        path: list[Hashable] = []
        inside = group.inside
        while inside is not None:
            around, block = by_name[inside[0]], inside[1]
            if around.fixed is None:
                resolve(around)
                roles[group.name] = (roles[around.name], *path, _signature(group), order[group.name])
                places[group.name] = places[around.name] * around.size + block
                return
            path += [_signature(around), block]
            inside = around.inside

    orbits: dict[Hashable, list[ChannelGroup]] = {}
    for group in groups:
        resolve(group)
        orbits.setdefault(roles[group.name], []).append(group)
    return [sorted(orbit, key=lambda group: places[group.name]) for orbit in orbits.values()]


def _order_in_block(groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Count, for each inner group, the groups of the same form before it in its block.

    Where blocks are tied to one another, one unit of the block group holds several of them.
    """
    by_name = {group.name: group for group in groups}
    alike: dict[Hashable, list[ChannelGroup]] = {}
    for group in groups:
        if group.inside is not None:
            alike.setdefault((group.inside, _signature(group)), []).append(group)
    order: dict[str, int] = {}
    for same in alike.values():
        ordered = sorted(same, key=lambda inner: _columns(inner, by_name)) if len(same) > 1 else same
        order |= {group.name: number for number, group in enumerate(ordered)}
    return order


def _columns(inner: ChannelGroup, groups: Mapping[str, ChannelGroup]) -> list[int]:
    """Find the block's positions that are an inner group's, in the first slot that contains it."""
    assert inner.inside is not None
    around, block = groups[inner.inside[0]], inner.inside[1]
    for slot in inner.slots:
        for other in around.slots if slot.within is None else ():
            if (other.key, other.axis) == (slot.key, slot.axis):
                columns = torch.isin(other.index[block], slot.index).nonzero().flatten().tolist()
                if columns:
                    return columns
    return []


def _signature(group: ChannelGroup) -> Hashable:
    return group.size, tuple((slot.key, slot.axis, slot.role, slot.index.shape[1]) for slot in group.slots)
