"""Units of block groups: whole blocks of positions that may be exchanged for one another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from depfuse.groups.labels.classes import Classes, mixed
from depfuse.groups.labels.labels import distinct
from depfuse.groups.occurrences import Occurrences


def block_units(occurrences: Occurrences, classes: Classes) -> list[tuple[list[list[int]], str | None]]:
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
    by_kind = occurrences.signatures(kinds, classes.count) if len(kinds) else np.zeros(0, np.uint64)
    containing: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for cell in cells:
        for member in cell:
            containing[member].append(cell)
    drafts: dict[tuple[int, str], list[list[list[int]]]] = defaultdict(list)
    alike: dict[Hashable, list[list[list[int]]]] = defaultdict(list)
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
                occurrences.first([m]) if occurrences.occurs(m) else (0, 0),
            ),
        )
        unit = members + sorted(blocks)
        if any(occurrences.occurs(member) for member in unit):
            candidates = alike[key, pinned, relations.fixed_around(unit)]
            fitting = (units for units in candidates if relations.exchangeable(units[0], unit))
            equal_units = next(fitting, None)
            if equal_units is None:
                candidates.append([unit])
                drafts[key, pinned].append(candidates[-1])
            else:
                equal_units.append(unit)
    return [
        ([[member for member in unit if occurrences.occurs(member)] for unit in units], pinned or None)
        for (_, pinned), drafted in drafts.items()
        for units in drafted
    ]


class _Blocks:
    """The blocks of all relations by their labels, and the classes that lie in each."""

    def __init__(self, classes: Classes, occurrences: Occurrences) -> None:
        self._classes, self._occurrences = classes, occurrences
        self._around: dict[int, list[int]] = defaultdict(list)
        self._content: dict[int, int] = {}  # label -> sum of the hashes of the block's members
        self._holding: dict[int, list[int]] = defaultdict(list)
        self._fixed: set[int] = set()
        pairs = distinct(np.concatenate(classes.inside)) if classes.inside else np.zeros((0, 2), np.int64)
        pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
        self._hashes: list[int] = mixed(np.arange(classes.count)).tolist()
        labels, starts = np.unique(pairs[:, 1], return_index=True)
        for label, members in zip(labels.tolist(), np.split(pairs[:, 0], starts[1:]), strict=False):
            content = sum(self._hashes[member] for member in members.tolist())
            self._content[label] = content
            if int(classes.of[label]) in classes.reasons:
                self._fixed.add(label)
            self._holding[content].append(label)
            for member in members.tolist():
                self._around[member].append(label)

    def fixed_around(self, unit: Sequence[int]) -> Hashable:
        """List, for each member, the blocks around it that keep their places: exchangeable units have the same."""
        return tuple(tuple(label for label in self._around.get(member, ()) if label in self._fixed) for member in unit)

    def exchangeable(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Tell whether exchanging two units member by member takes every block to a block.

        Where a block has rows of its own in a grouped convolution, its channels move along with them, in their order.
        """
        if len(first) != len(second):
            return False
        exchange = dict(zip((*first, *second), (*second, *first), strict=True))
        image = {label: self._content[label] for member in exchange for label in self._around.get(member, ())}
        for member, taken in exchange.items():
            for label in self._around.get(member, ()):
                image[label] += self._hashes[taken] - self._hashes[member]
        return all(
            any(self._is_taken_to(label, other, exchange) for other in self._holding.get(content, ()))
            for label, content in image.items()
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
