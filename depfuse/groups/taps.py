"""Taps: places in the network where a group's channels can be recorded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depfuse.groups.channel_group import ChannelGroup
from depfuse.groups.labels.classes import Classes
from depfuse.groups.labels.labels import ZERO, Labels
from depfuse.groups.labels.rules import RESHAPES, Replay, operation_name
from depfuse.groups.slots import Position, Tap
from depfuse.groups.tracing.depgraph import Call

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
PRODUCTS = ("Mm", "Addmm")
MOVEMENTS = (*RESHAPES, "Permute", "Transpose", "T", "Roll", "Slice", "Clone", "ConstantPadNd", "Index", "AsStrided")
NORMALISATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
)


def find_taps(
    replay: Replay, classes: Classes, groups: Sequence[ChannelGroup], ranks: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[Tap, ...]]:
    """Find modules whose input or output carries each free group's channels, one for each tensor."""
    carriers = _Carriers(groups, ranks)
    taps_of: list[dict[tuple[object, int, Position], Tap]] = [{} for _ in groups]
    times = Counter((call.module, call.side) for call in replay.trace.calls)
    normalised = {
        call.value
        for call in replay.trace.calls
        if call.side == "input" and isinstance(replay.trace.modules[call.module], NORMALISATIONS)
    }
    raw = {
        call.value
        for call in replay.trace.calls
        if call.side == "output" and isinstance(replay.trace.modules[call.module], (*LAYERS, *NORMALISATIONS))
    }
    for call in replay.trace.calls:
        module = replay.trace.modules[call.module]
        position = _position(call, module, call.value in normalised, raw)
        labels = replay.values.get(call.value)
        if position is None or labels is None or not call.first or times[call.module, call.side] > 1:
            continue
        for axis, flat in _channel_axes(labels):
            for number, index in carriers.carried(_classes_of(flat, classes)):
                tap = Tap(call.module, call.side, axis, index, position)  # type: ignore[arg-type]
                taps_of[number].setdefault((*call.value, position), tap)
    missing = {number for number, taps in enumerate(taps_of) if not taps and groups[number].fixed is None}
    if missing:
        places = {call.value: call for call in replay.trace.calls if call.first and times[call.module, call.side] == 1}
        for tap, flat in _projections(replay, places):
            for number, index in carriers.carried(_classes_of(flat, classes)):
                if number in missing:
                    taps_of[number].setdefault((tap.module, len(taps_of[number]), "before"), replace(tap, index=index))
    return _without_crossings([tuple(taps.values()) for taps in taps_of])


def _without_crossings(candidates: Sequence[tuple[Tap, ...]]) -> list[tuple[Tap, ...]]:
    """Remove taps where two groups cross, as heads and the channels of a key that all heads share.

    There, the channels of neither group can be compared before the other is matched.
    """
    shared: dict[object, list[Tap]] = defaultdict(list)
    for taps in candidates:
        for tap in taps:
            if tap.index.shape[1] > 1:
                shared[tap.module, tap.side, tap.axis, tap.position, tap.through].append(tap)
    crossing = {
        id(tap)
        for tensor_taps in shared.values()
        for first, second in _meeting(tensor_taps)
        if _cross(first.index, second.index)
        for tap in (first, second)
    }
    return [tuple(tap for tap in taps if id(tap) not in crossing) for taps in candidates]


def _meeting(taps: Sequence[Tap]) -> set[tuple[Tap, Tap]]:
    """Find pairs of taps of one tensor that have a position in common."""
    at: dict[int, list[Tap]] = defaultdict(list)
    for tap in taps:
        for position in torch.unique(tap.index).tolist():
            at[position].append(tap)
    return {pair for meeting in at.values() for pair in combinations(meeting, 2)}


def _cross(first: Tensor, second: Tensor) -> bool:
    """Tell whether a channel of each tap has positions of several channels of the other."""
    return _spread(first, second) and _spread(second, first)


def _spread(first: Tensor, second: Tensor) -> bool:
    """Tell whether positions of one channel (a row of the first) belong to several channels of the second."""
    owner = torch.full((int(max(first.max(), second.max())) + 1,), -1)
    owner[second] = torch.arange(len(second))[:, None].expand_as(second)
    met = owner[first]
    return bool(((met.max(1, keepdim=True).values != met) & (met >= 0)).any())


def _channel_axes(labels: Labels) -> Iterable[tuple[int, np.ndarray]]:
    """Yield (axis, labels (n_positions,)) of each factor that lies along one axis, the batch's left out."""
    for factor in labels.factors:
        if len(factor.axes) == 1 and 0 not in factor.axes:
            yield next(iter(factor.axes)), factor.labels.reshape(-1).numpy()


def _classes_of(flat: np.ndarray, classes: Classes) -> np.ndarray:
    return np.where(flat == ZERO, classes.count, classes.of[flat])


def _projections(replay: Replay, places: Mapping[tuple[Any, int], Call]) -> Iterable[tuple[Tap, np.ndarray]]:
    """Yield linear maps of tapped tensors by a function, as taps without index, and the labels of their outputs."""
    for operation in replay.trace.operations:
        if operation_name(operation) not in PRODUCTS:
            continue
        edges = operation.next_functions
        weight = _key(replay, edges[-1][0])
        bias = _key(replay, edges[0][0]) if len(edges) == 3 else None
        operand = edges[-2]
        if weight is None or operand[0] is None or operand not in replay.values:
            continue
        wanted = list(_channel_axes(replay.values[operand]))
        along = list(_channel_axes(replay.values[operation, 0]))
        while operand not in places and _moves(operand[0]):
            operand = operand[0].next_functions[0]
        if operand not in places or len(wanted) != 1 or len(along) != 1:
            continue
        for axis, flat in _channel_axes(replay.values[operand]):
            if np.array_equal(flat, wanted[0][1]):
                call = places[operand]
                tap = Tap(call.module, call.side, axis, torch.empty(0), "before", (weight, bias))  # type: ignore[arg-type]
                yield tap, along[0][1]


def _key(replay: Replay, node: Any) -> str | None:
    """Return the state-dict key of a whole parameter, transposed or not."""
    while node is not None and operation_name(node) in ("T", "Transpose"):
        node = node.next_functions[0][0]
    keys = replay.trace.leaves.get(id(node.variable), ()) if hasattr(node, "variable") else ()
    return keys[0] if keys else None


def _moves(operation: Any) -> bool:
    return operation is not None and not hasattr(operation, "variable") and operation_name(operation) in MOVEMENTS


class _Carriers:
    """The free group and channel of each class."""

    def __init__(self, groups: Sequence[ChannelGroup], ranks: Sequence[Sequence[Sequence[int]]]) -> None:
        self._sizes = np.array([group.size for group in groups])
        rows = [
            (member, number, rank)
            for number, (group, units) in enumerate(zip(groups, ranks, strict=True))
            if group.fixed is None
            for rank, unit in enumerate(units)
            for member in unit
        ]
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        self._members, self._numbers, self._ranks = table[np.argsort(table[:, 0], kind="stable")].T

    def carried(self, members: np.ndarray) -> Iterable[tuple[int, Tensor]]:
        """Yield (group number, index (n_channels, repeats)) of each group all of whose channels are among `members`."""
        starts = np.searchsorted(self._members, members, "left")
        counts = np.searchsorted(self._members, members, "right") - starts
        rows = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        positions = np.repeat(np.arange(len(members)), counts)
        numbers, ranks = self._numbers[rows], self._ranks[rows]
        for number, index in position_tables(numbers, ranks, positions, self._sizes):
            if index is not None:
                yield number, index


def _position(call: Call, module: nn.Module, is_normalised: bool, raw: set[tuple[object, int]]) -> Position | None:
    """Return the side of the non-linearity of a module's tensor; None where it is no place to tap.

    A block's output counts as after the non-linearity, unless it is a layer's or normalisation's output: the last
    block of a stage may be read by a pooling function alone, and be no layer's input.
    """
    if call.side == "input":
        return "after" if isinstance(module, LAYERS) else None
    if isinstance(module, NORMALISATIONS) or (isinstance(module, LAYERS) and not is_normalised):
        return "before"
    is_block = next(module.children(), None) is not None
    return "after" if is_block and call.value not in raw else None


def position_tables(
    kinds: np.ndarray, ranks: np.ndarray, positions: np.ndarray, sizes: np.ndarray | int
) -> Iterable[tuple[int, Tensor | None]]:
    """Return, for each kind, positions by rank as (size, repeats); None where ranks have unequal numbers.

    `sizes` are the numbers of ranks by kind, or one for all.
    """
    if not len(kinds):
        return
    width = int(ranks.max()) + 1
    both = kinds * width + ranks
    order = np.argsort(both, kind="stable")
    both, positions = both[order], positions[order]
    runs = _beginnings(both)  # of a kind and rank
    lengths = np.diff(runs, append=len(both))
    kinds = both[runs] // width
    first = _beginnings(kinds)
    kinds, counts = kinds[first], np.diff(first, append=len(runs))
    equal = counts == (sizes if isinstance(sizes, int) else sizes[kinds])
    equal &= np.minimum.reduceat(lengths, first) == np.maximum.reduceat(lengths, first)
    ends = np.append(runs[first[1:]], len(both))
    rows = zip(kinds.tolist(), counts.tolist(), runs[first].tolist(), ends.tolist(), equal.tolist(), strict=True)
    for kind, count, start, end, is_equal in rows:
        yield kind, torch.from_numpy(positions[start:end].reshape(count, -1).copy()) if is_equal else None


def _beginnings(values: np.ndarray) -> np.ndarray:
    """Find where runs of equal values begin."""
    begins = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    return begins.nonzero()[0]
