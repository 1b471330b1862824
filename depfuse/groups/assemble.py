"""Assembly of channel groups from labels: classes of positions that may be exchanged for one another.

Two classes may be exchanged when they occupy the same slots, the same number of times in each, and belong
to the same blocks. Whole blocks may be exchanged when their members correspond one to one. What this
assumes about the order of positions inside a channel is proved afterwards (`invariance.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from depfuse.groups.channel_group import ChannelGroup, ChannelGroups, Role, Slot
from depfuse.groups.labels.classes import Classes, mixed
from depfuse.groups.labels.labels import Factor, Labels, distinct
from depfuse.groups.labels.rules import Replay
from depfuse.groups.reasons import KERNEL, NOT_USED, PARTS, SINGLE, TOUCHES_INPUT, TOUCHES_OUTPUT
from depfuse.groups.taps import find_taps, position_tables


@dataclass(frozen=True)
class _Spot:
    """One axis of one parameter (or, in a grouped convolution, of the rows of one block)."""

    keys: tuple[str, ...]
    axis: int
    role: Role
    within: Tensor | None
    kind: int  # the same for all blocks of one axis


class _Occurrences:
    """Occurrences of each class: parallel arrays of spot, class and position, sorted by class and place in it."""

    def __init__(self, replay: Replay, classes: Classes) -> None:
        self.spots: list[_Spot] = []
        spots, members, positions, places = [], [], [], []
        kinds = 0
        for leaf, labels in replay.leaves.items():
            keys = replay.trace.leaves[leaf]
            for factor in labels.factors if keys else ():
                assert factor.source is not None
                axis = factor.source[1]
                role = replay.ledger.roles.get(factor.source, "scales")
                for within, values in _rows(factor, axis):
                    of = classes.of[values]
                    spots.append(np.full(len(of), len(self.spots)))
                    members.append(of)
                    places.append(classes.place[values])
                    positions.append(np.arange(len(of)))
                    self.spots.append(_Spot(keys, axis, role, within, kinds))  # type: ignore[arg-type]
                kinds += 1
        order = np.zeros(0, np.int64)
        if members:
            order = np.lexsort((np.concatenate(places), np.concatenate(members)))
        self.place = np.unique(np.concatenate(places)[order], return_inverse=True)[1] if members else order
        self.spot = np.concatenate(spots)[order] if members else order
        self.member = np.concatenate(members)[order] if members else order
        self.position = np.concatenate(positions)[order] if members else order
        self.starts = np.searchsorted(self.member, np.arange(classes.count + 1))
        self.in_rows: dict[int, dict[int, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))
        grouped = np.array([spot.within is not None for spot in self.spots], dtype=bool)
        for row in grouped[self.spot].nonzero()[0].tolist():
            spot = int(self.spot[row])
            place = (spot, int(self.position[row]))
            self.in_rows[int(self.member[row])][self.spots[spot].kind].add(place)

    def of(self, member: int) -> slice:
        """Return the rows of one class."""
        return slice(int(self.starts[member]), int(self.starts[member + 1]))

    def in_one_order(self, first: int, second: int) -> bool:
        """Tell whether two classes have the same positions in the rows of their two blocks."""
        firsts, others = self.in_rows.get(first, {}), self.in_rows.get(second, {})
        for kind in firsts.keys() & others.keys():
            spots = [{spot for spot, _ in places[kind]} for places in (firsts, others)]
            positions = [{position for _, position in places[kind]} for places in (firsts, others)]
            if spots[0] != spots[1] and positions[0] != positions[1]:
                return False
        return firsts.keys() == others.keys()

    def occurs(self, member: int) -> bool:
        """Tell whether a class has a position in any tensor; one that only names a block may have none."""
        return bool(self.starts[member] < self.starts[member + 1])


def _rows(factor: Factor, axis: int) -> Iterable[tuple[Tensor | None, np.ndarray]]:
    """Return the labels along a parameter's axis, once per block of rows where they depend on the block."""
    labels = factor.labels
    if factor.axes == {axis}:
        yield None, labels.reshape(-1).numpy()
        return
    table = labels.reshape(labels.shape[0], -1)
    _, inverse = torch.unique(table[:, 0], return_inverse=True)
    for block in range(int(inverse.max()) + 1):
        rows = (inverse == block).nonzero().reshape(-1)
        yield rows, table[rows[0]].numpy()


def _signatures(occurrences: _Occurrences, identities: np.ndarray, count: int) -> np.ndarray:
    """Hash, per class, how often it occurs at each identity (spot or kind), and in which places of the class."""
    signatures: np.ndarray = np.zeros(count, dtype=np.uint64)
    if not len(occurrences.spot):
        return signatures
    identity = identities[occurrences.spot] * (int(occurrences.place.max()) + 1) + occurrences.place
    identity = np.unique(identity, return_inverse=True)[1]
    width = int(identity.max()) + 1
    pair, times = np.unique(occurrences.member * width + identity, return_counts=True)
    np.add.at(signatures, pair // width, mixed(mixed(pair % width) + mixed(times + 7)))
    return signatures


def assemble(replay: Replay, classes: Classes) -> ChannelGroups:
    """Assemble channel groups from a replayed trace, in the order in which the network first uses them."""
    occurrences = _Occurrences(replay, classes)
    free_of = np.zeros(classes.count, dtype=np.int64)
    reasons = ["", *dict.fromkeys(classes.reasons.values())]
    for member, reason in classes.reasons.items():
        free_of[member] = reasons.index(reason)
    by_spot = _signatures(occurrences, np.arange(len(occurrences.spots)), classes.count)
    signature = by_spot + mixed(free_of)
    for number, relation in enumerate(classes.inside):
        np.add.at(signature, relation[:, 0], mixed(relation[:, 1] * (len(classes.inside) + 1) + number))

    drafts: list[tuple[list[list[int]], str | None]] = []
    gathered: dict[int, list[int]] = defaultdict(list)
    holders = {int(block) for relation in classes.blocks for block in np.unique(relation[:, 1])}
    for member in np.unique(occurrences.member).tolist():
        if member in holders:  # it names a block (a head's column in a table of biases) and moves with it
            continue
        gathered[int(signature[member])].append(member)
    for members in gathered.values():
        why = reasons[free_of[members[0]]]
        if why != KERNEL:
            drafts.append(([[member] for member in members], why or None))
    drafts += _block_drafts(occurrences, classes)

    groups, ranks = [], []
    for unordered, why_fixed in drafts:
        units = sorted(unordered, key=lambda unit: _first(occurrences, unit))
        slots = _slots(occurrences, units)
        if slots and len(units) > 1:
            groups.append(ChannelGroup("", len(units), slots, (), why_fixed))
            ranks.append(units)
    first_use = {key: place for place, key in enumerate(_first_uses(replay))}
    around = _enclosing(ranks)
    order = _blocks_first(sorted(range(len(groups)), key=lambda g: first_use[groups[g].slots[0].key]), around)
    names = _names([groups[g] for g in order])
    name_of = dict(zip(order, names, strict=True))
    taps = find_taps(replay, classes, [groups[g] for g in order], [ranks[g] for g in order])
    named = tuple(
        replace(
            groups[g],
            name=name_of[g],
            taps=group_taps,
            inside=None if (block := around[g]) is None else (name_of[block[0]], block[1]),
        )
        for g, group_taps in zip(order, taps, strict=True)
    )
    parameters = {
        key: tuple(replay.trace.tensors[key].shape)
        for keys in replay.trace.leaves.values()
        for key in keys
        if isinstance(replay.trace.tensors[key], nn.Parameter)
    }
    return ChannelGroups(named, _fixed_tensors(replay, classes, named), parameters)


def _first(occurrences: _Occurrences, unit: Sequence[int]) -> tuple[int, int]:
    """Find (spot, position) of the earliest occurrence of a unit."""
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(occurrences.of, unit)])
    spots, positions = occurrences.spot[rows], occurrences.position[rows]
    place = np.lexsort((positions, spots))[0]
    return int(spots[place]), int(positions[place])


def _enclosing(ranks: Sequence[Sequence[Sequence[int]]]) -> list[tuple[int, int] | None]:
    """Find, for each group (its units' members), the smallest block of another that holds it all: (group, block)."""
    sets = [[frozenset(unit) for unit in units] for units in ranks]
    blocks_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, units in enumerate(sets):
        for rank, unit in enumerate(units) if len(ranks[number][0]) > 1 else ():
            for member in unit:
                blocks_of[member].append((number, rank))
    enclosing: list[tuple[int, int] | None] = []
    for number, units in enumerate(sets):
        members = frozenset().union(*units)
        holding = [(g, b) for g, b in blocks_of.get(ranks[number][0][0], ()) if g != number and members <= sets[g][b]]
        enclosing.append(min(holding, key=lambda place: len(sets[place[0]][place[1]]), default=None))
    return enclosing


def _blocks_first(order: Sequence[int], around: Sequence[tuple[int, int] | None]) -> list[int]:
    """Sort the groups so that each block group comes before its inner groups."""
    placed: dict[int, None] = {}
    for group in order:
        chain = [group]
        while (block := around[chain[-1]]) is not None:
            chain.append(block[0])
        placed.update(dict.fromkeys(reversed(chain)))
    return list(placed)


def _first_uses(replay: Replay) -> list[str]:
    return [key for leaf in replay.leaves for key in replay.trace.leaves[leaf]]


def _block_drafts(occurrences: _Occurrences, classes: Classes) -> list[tuple[list[list[int]], str | None]]:
    """Draft the groups whose units are whole blocks."""
    cells: dict[tuple[int, ...], set[int]] = defaultdict(set)
    around_block: dict[int, list[int]] = defaultdict(list)  # class -> the blocks that it lies in
    if classes.blocks:
        pairs = distinct(np.concatenate(classes.blocks))
        pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
        outer, starts = np.unique(pairs[:, 1], return_index=True)
        inside = dict(zip(outer.tolist(), (part.tolist() for part in np.split(pairs[:, 0], starts[1:])), strict=True))
        for block, inner in inside.items():
            for member in inner:
                around_block[member].append(block)
        content = {block: _nested(block, inside) for block in inside}
        for block, inner in content.items():
            near = {other for member in inner for other in around_block[member]}
            cells[tuple(sorted(inner | {other for other in near if content[other] < inner}))].add(block)
    kinds = np.array([spot.kind for spot in occurrences.spots], dtype=np.int64)
    by_kind = _signatures(occurrences, kinds, classes.count) if len(kinds) else np.zeros(0, np.uint64)
    containing: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for cell in cells:
        for member in cell:
            containing[member].append(cell)
    drafts: dict[tuple[int, str], list[list[list[int]]]] = defaultdict(list)
    relations = _Blocks(classes, occurrences)
    numbers = {cell: number for number, cell in enumerate(cells)}
    for cell, blocks in cells.items():
        around = {other for member in cell for other in containing[member] if other != cell}
        coarser = sorted(numbers[other] for other in around if len(other) > len(cell))
        finer = sorted(len(other) for other in around if len(other) <= len(cell))
        shape = Counter(int(by_kind[member]) for member in cell)
        block_kinds = sorted(int(by_kind[block]) for block in blocks)
        pinned = next((classes.reasons[m] for m in (*cell, *blocks) if m in classes.reasons), "")
        within = sorted(outer for block in blocks for outer in around_block[block])
        key = hash(
            (tuple(sorted(shape.items())), tuple(block_kinds), tuple(coarser), tuple(finer), tuple(within), pinned)
        )
        members = sorted(
            cell,
            key=lambda m: (
                int(by_kind[m]),
                _first(occurrences, [m]) if occurrences.occurs(m) else (0, 0),
            ),
        )
        unit = members + sorted(blocks)
        if any(occurrences.occurs(member) for member in unit):
            alike = drafts[key, pinned]
            fitting = (units for units in alike if relations.exchangeable(units[0], unit))
            equal_units = next(fitting, None)
            if equal_units is None:
                alike.append([unit])
            else:
                equal_units.append(unit)
    return [
        ([[member for member in unit if occurrences.occurs(member)] for unit in units], pinned or None)
        for (_, pinned), alike in drafts.items()
        for units in alike
    ]


class _Blocks:
    """The blocks of all relations by their labels, and the classes that lie in each."""

    def __init__(self, classes: Classes, occurrences: _Occurrences) -> None:
        self._classes, self._occurrences = classes, occurrences
        self._members: dict[int, frozenset[int]] = {}
        self._around: dict[int, list[int]] = defaultdict(list)
        self._holding: dict[frozenset[int], set[int]] = defaultdict(set)
        pairs = distinct(np.concatenate(classes.inside)) if classes.inside else np.zeros((0, 2), np.int64)
        pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
        labels, starts = np.unique(pairs[:, 1], return_index=True)
        for label, members in zip(labels.tolist(), np.split(pairs[:, 0], starts[1:]), strict=False):
            self._members[label] = frozenset(members.tolist())
            self._holding[self._members[label]].add(label)
            for member in members.tolist():
                self._around[member].append(label)

    def exchangeable(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Tell whether exchanging two units member by member takes every block to a block.

        Where a block has rows of its own in a grouped convolution, its channels move along with them, in their order.
        """
        if len(first) != len(second):
            return False
        exchange = dict(zip((*first, *second), (*second, *first), strict=True))
        return all(
            any(self._is_taken_to(label, other, exchange) for other in self._holding.get(image, ()))
            for label in {label for member in exchange for label in self._around.get(member, ())}
            for image in [frozenset(exchange.get(member, member) for member in self._members[label])]
        ) and all(map(self._occurrences.in_one_order, first, second))

    def _is_taken_to(self, label: int, other: int, exchange: Mapping[int, int]) -> bool:
        """Tell whether a block's own name goes where its members go; a fixed channel keeps each of its positions."""
        name, target = int(self._classes.of[label]), int(self._classes.of[other])
        if name in self._classes.reasons or target in self._classes.reasons:
            return label == other
        if not self._occurrences.occurs(name):
            return not self._occurrences.occurs(target)
        return exchange.get(name, name) == target and (label == other or name != target)


def _nested(block: int, inside: Mapping[int, Sequence[int]]) -> set[int]:
    """Collect the classes in a block, and in blocks that name one of them: all of them move with it."""
    nested: set[int] = set()
    stack = [block]
    while stack:
        new = set(inside.get(stack.pop(), ())) - nested - {block}
        nested |= new
        stack.extend(new)
    return nested


def _slots(occurrences: _Occurrences, units: Sequence[Sequence[int]]) -> tuple[Slot, ...]:
    """Make slots of the group whose channels are `units`; each unit's positions in the order of its members."""
    whole_blocks = len(units[0]) > 1
    ranks = np.repeat(np.arange(len(units)), [len(unit) for unit in units])
    members = np.concatenate([np.asarray(unit) for unit in units])
    sizes = occurrences.starts[members + 1] - occurrences.starts[members]
    first = np.repeat(occurrences.starts[members] - np.cumsum(sizes) + sizes, sizes)
    rows = first + np.arange(int(sizes.sum()))
    rank, spots, positions = np.repeat(ranks, sizes), occurrences.spot[rows], occurrences.position[rows]
    if whole_blocks:  # where each block has rows of its own, the input axis moves along with them
        moving = np.array([spot.within is None for spot in occurrences.spots])[spots]
        pairs = np.unique(np.stack([spots, rank]), axis=1)
        moving |= np.bincount(pairs[0], minlength=len(occurrences.spots))[spots] > 1
        rank, spots, positions = rank[moving], spots[moving], positions[moving]
    slots: list[Slot] = []
    for spot, index in position_tables(spots, rank, positions, len(units)):
        if index is None:
            return ()
        place = occurrences.spots[spot]
        within = None if place.within is None else (0, place.within)
        slots.extend(Slot(key, place.axis, index, place.role, within) for key in place.keys)
    produced = [slot for slot in slots if slot.role == "produces"]
    return tuple(produced + [slot for slot in slots if slot.role != "produces"])


def _names(groups: Sequence[ChannelGroup]) -> list[str]:
    """Name each group after the layer that first produces it, numbered where several share it."""
    names = [_layer(group) for group in groups]
    totals, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name}#{seen[name]}" if totals[name] > 1 else name)
    return numbered


def _layer(group: ChannelGroup) -> str:
    slot = group.slots[0]
    layer = slot.key.rpartition(".")[0] or slot.key
    return layer if slot.role != "consumes" else f"{layer} (input)"


# --- what stays ------------------------------------------------------------------------------------


def _fixed_tensors(replay: Replay, classes: Classes, groups: Sequence[ChannelGroup]) -> dict[str, str]:
    """Map state-dict key -> reason, for the floating-point tensors in no free group."""
    moved = {slot.key for group in groups if group.fixed is None for slot in group.slots}
    return {
        key: _why(replay.leaves.get(leaf), classes)
        for leaf, keys in replay.trace.leaves.items()
        for key in keys
        if key not in moved and replay.trace.tensors[key].is_floating_point()
    }


def _why(labels: Labels | None, classes: Classes) -> str:
    if labels is None:
        return NOT_USED
    reasons = {
        classes.reasons[member]
        for factor in labels.factors
        for member in np.unique(classes.of[factor.labels.reshape(-1).numpy()]).tolist()
        if member in classes.reasons
    } - {KERNEL}
    for first in (TOUCHES_INPUT, TOUCHES_OUTPUT):
        reasons = ({first} | (reasons - {first})) if first in reasons else reasons
    several = any(len(np.unique(classes.of[factor.labels.reshape(-1).numpy()])) > 1 for factor in labels.factors)
    return "; ".join(sorted(reasons)) or (PARTS if several else SINGLE)
