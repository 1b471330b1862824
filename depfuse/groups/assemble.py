"""Assembly of channel groups from labels: classes of positions that may be exchanged for one another.

Two classes may be exchanged when they occupy the same slots, the same number of times in each, and belong
to the same blocks. Whole blocks may be exchanged when their members correspond one to one. The
order of positions inside a channel is assumed here, and proved afterwards (`proof.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from torch import nn

from depfuse.groups.blocks import block_units
from depfuse.groups.channel_group import ChannelGroup, ChannelGroups
from depfuse.groups.labels.classes import Classes, mixed
from depfuse.groups.labels.distinct import distinct
from depfuse.groups.labels.labels import Labels
from depfuse.groups.labels.rules import Replay
from depfuse.groups.occurrences import Occurrences
from depfuse.groups.reasons import CROSSING, KERNEL, NOT_USED, PARTS, SINGLE, TOUCHES_INPUT, TOUCHES_OUTPUT
from depfuse.groups.slots import Slot
from depfuse.groups.taps import find_taps, position_tables


def assemble(replay: Replay, classes: Classes) -> ChannelGroups:
    """Assemble channel groups from a replayed trace, in the order in which the network first uses them."""
    occurrences = Occurrences(replay, classes)
    free_of = np.zeros(classes.count, dtype=np.int64)
    reasons = ["", *dict.fromkeys(classes.reasons.values())]
    for member, reason in classes.reasons.items():
        free_of[member] = reasons.index(reason)
    by_spot = occurrences.signatures(np.arange(len(occurrences.spots)), classes.count)
    signature = by_spot + mixed(free_of)
    for number, relation in enumerate(classes.inside):
        np.add.at(signature, relation[:, 0], mixed(relation[:, 1] * (len(classes.inside) + 1) + number))

    drafts: list[tuple[list[list[int]], str | None]] = []
    gathered: dict[int, list[int]] = defaultdict(list)
    holders = {block for relation in classes.blocks for block in distinct(relation[:, 1]).tolist()}
    for member in distinct(occurrences.member).tolist():
        if member in holders:  # it names a block (a head's column in a table of biases) and moves with it
            continue
        gathered[int(signature[member])].append(member)
    for members in gathered.values():
        why = reasons[free_of[members[0]]]
        if why != KERNEL:
            drafts.append(([[member] for member in members], why or None))
    drafts += block_units(occurrences, classes)

    groups, ranks = [], []
    for unordered, why_fixed in drafts:
        units = sorted(unordered, key=lambda unit: occurrences.first(unit))
        slots = _slots(occurrences, units)
        if slots and len(units) > 1:
            groups.append(ChannelGroup("", len(units), slots, (), why_fixed))
            ranks.append(units)
    first_use = {key: place for place, key in enumerate(_first_uses(replay))}
    holding = _holding(ranks)
    crossing = _crossing(holding, [0 if group.fixed else group.size for group in groups])
    around = _enclosing(ranks, holding, crossing)
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
    found = ChannelGroups(named, _fixed_tensors(replay, classes, named), parameters)
    return found.fix({name_of[g]: CROSSING for g in crossing})


def _holding(ranks: Sequence[Sequence[Sequence[int]]]) -> list[dict[int, int]]:
    """Map, for each group (its units' members), each other group to its block that holds all of it, where one does."""
    sets = [[frozenset(unit) for unit in units] for units in ranks]
    blocks_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, units in enumerate(sets):
        for rank, unit in enumerate(units) if len(ranks[number][0]) > 1 else ():
            for member in unit:
                blocks_of[member].append((number, rank))
    holding: list[dict[int, int]] = []
    for number, units in enumerate(sets):
        members = frozenset().union(*units)
        near = blocks_of.get(ranks[number][0][0], ())
        holding.append({g: block for g, block in near if g != number and members <= sets[g][block]})
    return holding


def _crossing(holding: Sequence[Mapping[int, int]], sizes: Sequence[int]) -> set[int]:
    """Find groups whose blocks cross those of another, with free channels inside both.

    The smallest example is a stream of eight channels, read by two filters of channels 1 to 4 and 5 to 8, and by two of
    the odd and the even ones: a table of two rows and two columns. Rows may be exchanged, columns too, and the channels
    inside each cell. Rows that hold cells are a tree, and so are columns, but not both: of two such groups, the one
    with fewer blocks stays in its place.

    Parameters
    ----------
    holding
        For each group, the blocks of other groups that hold all of it.
    sizes
        Number of each group's channels; 0 where it is fixed.
    """
    rivals: dict[int, set[int]] = defaultdict(set)
    for inner, blocks in enumerate(holding):
        around = [group for group in blocks if sizes[group]] if sizes[inner] else []
        for first, second in combinations(around, 2):
            if first not in holding[second] and second not in holding[first]:
                rivals[first].add(second)
                rivals[second].add(first)
    crossing: set[int] = set()
    for group in sorted(rivals, key=lambda group: (-sizes[group], group)):
        if group not in crossing:
            crossing |= rivals[group]
    return crossing


def _enclosing(
    ranks: Sequence[Sequence[Sequence[int]]], holding: Sequence[Mapping[int, int]], crossing: Collection[int]
) -> list[tuple[int, int] | None]:
    """Find, for each group, the smallest block of another that holds it all; crossing ones hold none."""

    def positions(place: tuple[int, int]) -> int:
        return len(ranks[place[0]][place[1]])

    places = [[place for place in blocks.items() if place[0] not in crossing] for blocks in holding]
    return [min(found, key=positions, default=None) for found in places]


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


def _slots(occurrences: Occurrences, units: Sequence[Sequence[int]]) -> tuple[Slot, ...]:
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
        pairs = distinct(spots * len(units) + rank)
        moving |= np.bincount(pairs // len(units), minlength=len(occurrences.spots))[spots] > 1
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
        for member in distinct(classes.of[factor.labels.reshape(-1).numpy()]).tolist()
        if member in classes.reasons
    } - {KERNEL}
    for first in (TOUCHES_INPUT, TOUCHES_OUTPUT):
        reasons = ({first} | (reasons - {first})) if first in reasons else reasons
    several = any(len(distinct(classes.of[factor.labels.reshape(-1).numpy()])) > 1 for factor in labels.factors)
    return "; ".join(sorted(reasons)) or (PARTS if several else SINGLE)
