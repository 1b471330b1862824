"""Classes: labels that are united, and are permuted as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from depfuse.groups.labels.distinct import distinct, distinct_pairs
from depfuse.groups.labels.labels import Ledger
from depfuse.groups.reasons import CONSTANT, OVERLAP

ROUNDS = 3  # of colour refinement


@dataclass(frozen=True)
class Classes:
    """Labels after all unions: `of[label]` is the class; classes are the units of permutation.

    Attributes
    ----------
    of
        (n_labels,) class of each label.
    place
        (n_labels,) a hash of the ties of each label to the others of its class: where two channels correspond, so do
        their positions with the same hash.
    count
        Number of classes.
    blocks
        One (n, 2) array per relation: class, class of its block.
    inside
        One (n, 2) array per relation: class, label of its block. Two blocks of one class are two places still: the
        filters of a depthwise convolution that read two positions of one channel.
    reasons
        Class -> the reason why it is fixed.
    """

    of: np.ndarray
    place: np.ndarray
    count: int
    blocks: tuple[np.ndarray, ...]
    inside: tuple[np.ndarray, ...]
    reasons: dict[int, str]


def close(ledger: Ledger) -> Classes:
    """Close the unions into classes.

    Blocks that hold the very same labels are one (a head, for each image of the batch), a block of one channel is that
    channel, and two divisions of the same channels into the same blocks are one (two
    grouped convolutions that read one residual stream). Blocks of one division with a channel in common stay where
    they are: exchanging them would leave that channel in its place.
    """
    blocks, same = _without_copies(ledger)
    unions = [*ledger.unions, *same]
    while True:
        classes, count = _components(unions, ledger.count)
        relations = [distinct_pairs(classes[pairs]) for pairs in blocks]
        extra = [pairs for relation in relations if len(pairs := _alone(relation))]
        extra = extra or _same_blocks([relation[relation[:, 0] != relation[:, 1]] for relation in relations])
        if not extra:
            break
        representative = np.zeros(count, dtype=np.int64)
        representative[classes] = np.arange(len(classes))
        unions.extend(representative[pairs] for pairs in extra)
    reasons: dict[int, str] = {}
    for labels, reason in ledger.pinned:
        for label in distinct(classes[labels]).tolist():
            reasons.setdefault(label, reason)
    sizes = np.bincount(classes, minlength=count)
    for labels in ledger.loose:
        members = distinct(classes[labels])
        reasons.update(dict.fromkeys(members[sizes[members] == 1].tolist(), CONSTANT))
    relations = [relation[relation[:, 0] != relation[:, 1]] for relation in relations]
    for relation in relations:
        for block in _overlapping(relation).tolist():
            reasons.setdefault(block, OVERLAP)
    _fix_around(reasons, relations)
    inside = tuple(_inside(classes, pairs) for pairs in blocks)
    return Classes(classes, _places(ledger), count, tuple(filter(len, relations)), inside, reasons)


def _inside(classes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return class and label of its block, for one relation between labels."""
    pairs = pairs[classes[pairs[:, 0]] != classes[pairs[:, 1]]]
    rows: np.ndarray = distinct_pairs(np.stack([classes[pairs[:, 0]], pairs[:, 1]], axis=1))
    return rows


def _places(ledger: Ledger) -> np.ndarray:
    """Refine colours (Weisfeiler and Leman) of the graph whose edges are the unions, for a few rounds."""
    places: np.ndarray = np.zeros(ledger.count, dtype=np.uint64)
    for _ in range(ROUNDS if ledger.unions else 0):
        before, places = mixed(places), places.copy()
        for event, pairs in enumerate(ledger.unions):
            first, second = pairs.T
            side = mixed(np.array([2 * event + 1, 2 * event + 2]))
            np.add.at(places, first, mixed(before[second] + side[0]))
            np.add.at(places, second, mixed(before[first] + side[1]))
    return places


def mixed(values: np.ndarray) -> np.ndarray:
    """Hash integers to well-mixed 64 bits (the finaliser of splitmix64)."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _without_copies(ledger: Ledger) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Give blocks with the same labels one label; return the relations with the pairs of such blocks."""
    blocks, same = ledger.blocks, []
    while identical := [pairs for relation in blocks if len(pairs := _identical(relation))]:
        same += identical
        number, count = _components(identical, ledger.count)
        first: np.ndarray = np.zeros(count, dtype=np.int64)
        first[number[::-1]] = np.arange(len(number))[::-1]
        blocks = [first[number[relation]] for relation in blocks]
    return blocks, same


def _identical(pairs: np.ndarray) -> np.ndarray:
    """Find pairs of blocks of one relation with the same labels."""
    pairs = distinct_pairs(pairs)
    blocks, where = np.unique(pairs[:, 1], return_inverse=True)
    content: np.ndarray = np.zeros(len(blocks), dtype=np.uint64)
    np.add.at(content, where, mixed(pairs[:, 0]))
    order = np.argsort(content, kind="stable")
    same = content[order[1:]] == content[order[:-1]]
    return np.stack([blocks[order[1:][same]], blocks[order[:-1][same]]], axis=1)


def _fix_around(reasons: dict[int, str], relations: Sequence[np.ndarray]) -> None:
    """Fix the blocks of fixed labels."""
    inner, outer = (np.concatenate([np.empty(0, np.int64), *(r[:, side] for r in relations)]) for side in (0, 1))
    while True:
        fixed = np.isin(inner, list(reasons)) & ~np.isin(outer, list(reasons))
        if not fixed.any():
            return
        reasons.update({int(block): reasons[int(one)] for one, block in zip(inner[fixed], outer[fixed], strict=True)})


def _alone(relation: np.ndarray) -> np.ndarray:
    """Select the pairs of one relation whose block holds nothing else."""
    relation = relation[relation[:, 0] != relation[:, 1]]
    alone: np.ndarray = relation[_once(relation[:, 1])]
    return alone


def _overlapping(relation: np.ndarray) -> np.ndarray:
    """Find blocks of one relation that share a channel with another block."""
    overlapping: np.ndarray = distinct(relation[~_once(relation[:, 0]), 1])
    return overlapping


def _same_blocks(relations: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find pairs of blocks of two divisions with the same of those channels that both divide."""
    divisions = _divisions([relation for relation in relations if len(relation)])
    labels = [np.unique(division[:, 0], return_index=True) for division in divisions]
    same = []
    for number, other in _sharing([of for of, _ in labels]):
        _, mine, others = np.intersect1d(labels[number][0], labels[other][0], assume_unique=True, return_indices=True)
        blocks = divisions[number][labels[number][1][mine], 1], divisions[other][labels[other][1][others], 1]
        pairs = distinct_pairs(np.stack(blocks, axis=1))
        single = [_once(pairs[:, side]) for side in (0, 1)]
        pairs = pairs[single[0] & single[1] & (pairs[:, 0] != pairs[:, 1])]
        if len(pairs):
            same.append(pairs)
    return same


def _divisions(relations: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Join relations with a block in common, which are one division: a convolution's inputs and outputs."""
    divisions: dict[int, np.ndarray] = {}
    owner = np.full(1 + max((int(relation[:, 1].max()) for relation in relations), default=-1), -1)
    for number, relation in enumerate(relations):
        joined = [divisions.pop(own) for own in distinct(owner[relation[:, 1]]).tolist() if own >= 0]
        divisions[number] = distinct_pairs(np.concatenate([relation, *joined]))
        owner[divisions[number][:, 1]] = number
    return list(divisions.values())


def _sharing(sets: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """List the pairs of sets with a label in common, each with the later one first."""
    if not sets:
        return []
    number = np.repeat(np.arange(len(sets)), [len(own) for own in sets])
    _, label = np.unique(np.concatenate(sets), return_inverse=True)
    holds = coo_array((np.ones(len(label), dtype=np.int32), (number, label))).tocsr()
    later, earlier = (holds @ holds.T).nonzero()
    return sorted((int(a), int(b)) for a, b in zip(later, earlier, strict=True) if a > b)


def _once(values: np.ndarray) -> np.ndarray:
    """Mark the values that occur once."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    single: np.ndarray = counts[where] == 1
    return single


def _components(unions: Sequence[np.ndarray], count: int) -> tuple[np.ndarray, int]:
    if not unions:
        return np.arange(count), count
    pairs = np.concatenate(unions)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    number, classes = connected_components(graph, directed=False)
    return classes.astype(np.int64), int(number)
