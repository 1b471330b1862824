"""Units of block groups: whole blocks of positions that may be exchanged for one another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from depfuse.groups.labels.classes import Classes, mixed
from depfuse.groups.labels.distinct import distinct_pairs
from depfuse.groups.occurrences import Occurrences

WORD = 2**64 - 1  # sums of hashes wrap around, as NumPy's do


def block_units(occurrences: Occurrences, classes: Classes) -> list[tuple[list[list[int]], str | None]]:
    """Draft the groups whose units are whole blocks."""
    cells: dict[tuple[int, ...], set[int]] = defaultdict(set)
    around_block: dict[int, list[int]] = defaultdict(list)  # class -> the blocks that it lies in
    if classes.blocks:
        pairs = distinct_pairs(np.concatenate(classes.blocks))
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
    by_kind: list[int] = occurrences.signatures(kinds, classes.count).tolist() if len(kinds) else []
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
        shape = Counter(by_kind[member] for member in cell)
        block_kinds = sorted(by_kind[block] for block in blocks)
        pinned = next((classes.reasons[m] for m in (*cell, *blocks) if m in classes.reasons), "")
        within = sorted(outer for block in blocks for outer in around_block[block])
        key = hash(
            (tuple(sorted(shape.items())), tuple(block_kinds), tuple(coarser), tuple(finer), tuple(within), pinned)
        )
        members = sorted(
            cell,
            key=lambda m: (
                by_kind[m],
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
        pairs = distinct_pairs(np.concatenate(classes.inside)) if classes.inside else np.zeros((0, 2), np.int64)
        self._labels: list[int] = pairs[:, 1].tolist()
        self._starts: list[int] = np.searchsorted(pairs[:, 0], np.arange(classes.count + 1)).tolist()
        hashes = mixed(np.arange(classes.count))
        self._hashes: list[int] = hashes.tolist()
        pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
        labels, starts = np.unique(pairs[:, 1], return_index=True)
        contents = np.add.reduceat(hashes[pairs[:, 0]], starts) if len(pairs) else hashes[:0]
        # label -> sum of the hashes of the block's members, in 64 bits
        self._content: dict[int, int] = dict(zip(labels.tolist(), contents.tolist(), strict=True))
        self._name: dict[int, int] = dict(zip(labels.tolist(), classes.of[labels].tolist(), strict=True))
        self._fixed = {label for label, name in self._name.items() if name in classes.reasons}
        self._holding: dict[int, list[int]] = defaultdict(list)
        for label, content in self._content.items():
            self._holding[content].append(label)

    def _around(self, member: int) -> list[int]:
        """List the blocks around a class."""
        return self._labels[self._starts[member] : self._starts[member + 1]]

    def fixed_around(self, unit: Sequence[int]) -> Hashable:
        """List, for each member, the blocks around it that keep their places: exchangeable units have the same."""
        return tuple(tuple(label for label in self._around(member) if label in self._fixed) for member in unit)

    def exchangeable(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Tell whether exchanging two units member by member takes every block to a block.

        Where a block has rows of its own in a grouped convolution, its channels move along with them, in their order.
        """
        if len(first) != len(second):
            return False
        exchange = dict(zip((*first, *second), (*second, *first), strict=True))
        image: dict[int, int] = {}
        for member, taken in exchange.items():
            change = self._hashes[taken] - self._hashes[member]
            for label in self._around(member):
                image[label] = image.get(label, self._content[label]) + change
        return all(
            any(self._is_taken_to(label, other, exchange) for other in self._holding.get(content & WORD, ()))
            for label, content in image.items()
        ) and all(map(self._occurrences.in_one_order, first, second))

    def _is_taken_to(self, label: int, other: int, exchange: Mapping[int, int]) -> bool:
        """Tell whether a block's own name goes where its members go; a fixed channel keeps each of its positions."""
        name, target = self._name[label], self._name[other]
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
