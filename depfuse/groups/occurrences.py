"""Occurrences of classes of labels: the tensors' axes and positions where each is found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depfuse.groups.labels.classes import Classes, mixed
from depfuse.groups.labels.labels import Factor
from depfuse.groups.labels.rules import Replay
from depfuse.groups.slots import Role


@dataclass(frozen=True)
class Spot:
    """One axis of one parameter (or, in a grouped convolution, of the rows of one block)."""

    keys: tuple[str, ...]
    axis: int
    role: Role
    within: Tensor | None
    kind: int  # the same for all blocks of one axis


class Occurrences:
    """Occurrences of each class: parallel arrays of spot, class and position, sorted by class and place in it."""

    def __init__(self, replay: Replay, classes: Classes) -> None:
        self.spots: list[Spot] = []
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
                    self.spots.append(Spot(keys, axis, role, within, kinds))  # type: ignore[arg-type]
                kinds += 1
        order = np.zeros(0, np.int64)
        if members:
            order = np.lexsort((np.concatenate(places), np.concatenate(members)))
        self.place = np.unique(np.concatenate(places)[order], return_inverse=True)[1] if members else order
        self.spot = np.concatenate(spots)[order] if members else order
        self.member = np.concatenate(members)[order] if members else order
        self.position = np.concatenate(positions)[order] if members else order
        self.starts = np.searchsorted(self.member, np.arange(classes.count + 1))
        self._first = self._earliest()
        self._occurs: list[bool] = (self.starts[1:] > self.starts[:-1]).tolist()
        self._in_rows = self._rows_of_blocks()

    def _earliest(self) -> dict[int, tuple[int, int]]:
        """Map each class to (spot, position) of its earliest occurrence."""
        if not len(self.member):
            return {}
        width = int(self.position.max()) + 1
        members, starts = np.unique(self.member, return_index=True)
        spots, positions = np.divmod(np.minimum.reduceat(self.spot * width + self.position, starts), width)
        return dict(zip(members.tolist(), zip(spots.tolist(), positions.tolist(), strict=True), strict=True))

    def _rows_of_blocks(self) -> dict[int, dict[int, tuple[set[int], set[int]]]]:
        """Map each class -> kind of spot -> the spots and positions at which it lies in rows of one block."""
        found: dict[int, dict[int, tuple[set[int], set[int]]]] = defaultdict(dict)
        grouped = np.array([spot.within is not None for spot in self.spots], dtype=bool)
        rows = grouped[self.spot].nonzero()[0]
        columns = (self.member[rows].tolist(), self.spot[rows].tolist(), self.position[rows].tolist())
        for member, spot, position in zip(*columns, strict=True):
            spots, positions = found[member].setdefault(self.spots[spot].kind, (set(), set()))
            spots.add(spot)
            positions.add(position)
        return found

    def in_one_order(self, first: int, second: int) -> bool:
        """Tell whether two classes have the same positions in the rows of their two blocks."""
        firsts, others = self._in_rows.get(first), self._in_rows.get(second)
        if firsts is None or others is None:
            return firsts is others
        if firsts.keys() != others.keys():
            return False
        return all(places[0] == others[kind][0] or places[1] == others[kind][1] for kind, places in firsts.items())

    def occurs(self, member: int) -> bool:
        """Tell whether a class has a position in any tensor; one that only names a block may have none."""
        return self._occurs[member]

    def first(self, unit: Sequence[int]) -> tuple[int, int]:
        """Find (spot, position) of the earliest occurrence of a unit, some classes that belong together."""
        if len(unit) == 1:
            return self._first[unit[0]]
        return min(self._first[member] for member in unit if member in self._first)

    def signatures(self, identities: np.ndarray, count: int) -> np.ndarray:
        """Hash, per class, how often it occurs at each identity (spot or kind), and in which places of the class."""
        signatures: np.ndarray = np.zeros(count, dtype=np.uint64)
        if not len(self.spot):
            return signatures
        identity = identities[self.spot] * (int(self.place.max()) + 1) + self.place
        identity = np.unique(identity, return_inverse=True)[1]
        width = int(identity.max()) + 1
        pair, times = np.unique(self.member * width + identity, return_counts=True)
        np.add.at(signatures, pair // width, mixed(mixed(pair % width) + mixed(times + 7)))
        return signatures


def _rows(factor: Factor, axis: int) -> Iterable[tuple[Tensor | None, np.ndarray]]:
    """Return the labels along a parameter's axis, once per block of rows where they depend on the block."""
    labels = factor.labels
    if not labels.numel():
        return
    if factor.axes == {axis}:
        yield None, labels.reshape(-1).numpy()
        return
    table = labels.reshape(labels.shape[0], -1)
    _, inverse = torch.unique(table[:, 0], return_inverse=True)
    for block in range(int(inverse.max()) + 1):
        rows = (inverse == block).nonzero().reshape(-1)
        yield rows, table[rows[0]].numpy()
