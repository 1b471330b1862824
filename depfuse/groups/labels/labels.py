"""Labels: for each position of a tensor, the permutable unit that it belongs to.

Every entry of every axis of a parameter starts with a label of its own. As the forward pass is replayed,
labels travel with the entries through data movement (by applying the same movement to the labels), are
united where an operation ties two entries together (an addition, a product summed over the channel), and
end where an axis is summed away. Labels that are united in the end are one channel.

A tensor may carry several *factors*, since its axes permute independently: a convolution's weight has one for its
outputs and one for its inputs. A factor is an int64 tensor with as many axes as the tensor it labels and
size 1 along every axis that it does not depend on. Label `ZERO` marks entries that are always zero
(padding): they tie nothing.

Where an operation takes statistics over part of a factor's positions (a group of GroupNorm, an attention
head), the positions of one part form a *block*: they may be permuted among themselves, and whole blocks
may be exchanged. That is kept as a relation (label, label of its block).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depfuse.groups.labels.distinct import distinct, distinct_pairs
from depfuse.groups.reasons import PAIRS, PARTS, SINGLE, TOUCHES_INPUT

ZERO = -1  # label of positions whose values are always zero


@dataclass(frozen=True, eq=False)
class Factor:
    """Labels of one independent set of positions; `source` is (tensor id, axis) where it is a parameter's own."""

    labels: Tensor
    source: tuple[int, int] | None = None

    @property
    def axes(self) -> frozenset[int]:
        """Axes along which the labels vary."""
        return frozenset(axis for axis, size in enumerate(self.labels.shape) if size > 1)

    def all_zero(self, away: Iterable[int]) -> bool:
        """Tell whether, somewhere along its other axes, there are only zeros along the axes `away`."""
        zero = self.labels == ZERO
        return bool((zero.all(dim=tuple(away)) if away else zero).any())

    def with_labels(self, labels: Tensor) -> Factor:
        """Copy the factor with other labels, reduced to the axes along which they vary."""
        return replace(self, labels=_narrowed(labels, self.labels.numel(), len(self.axes)))


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a tensor of shape `shape`: its factors, and its plain axes.

    Entries along a *plain* axis differ in a way that no permutation may touch: pixels, tokens, the
    network's input channels.
    """

    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    plain: frozenset[int] = frozenset()

    def on(self, axis: int) -> tuple[Factor, ...]:
        """Return the factors that vary along an axis."""
        return tuple(factor for factor in self.factors if axis in factor.axes)


def compact(labels: Tensor) -> Tensor:
    """Reduce broadcast (stride 0) axes to size 1."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(axis, 0, 1)
    return labels


def _narrowed(moved: Tensor, entries: int, axes: int) -> Tensor:
    """Reduce to size 1 the axes along which labels do not change that varied along `axes` axes before they were moved.

    A reshape that copies expands broadcast axes: there the values themselves must be compared.
    """
    moved = compact(moved)
    copied = moved.numel() > entries or sum(size > 1 for size in moved.shape) > axes
    return reduced(moved) if copied else moved


def reduced(labels: Tensor) -> Tensor:
    """Reduce to size 1 every axis along which the labels do not change."""
    for axis in range(labels.ndim):
        first = labels.narrow(axis, 0, 1)
        if labels.shape[axis] > 1 and torch.equal(labels, first.expand_as(labels)):
            labels = first
    return labels


@dataclass
class Ledger:
    """Facts learnt in the replay: unions, blocks, pinned labels and the roles of parameters' axes.

    Labels in `loose` read a constant of one value, and are pinned where they are tied to nothing else.
    """

    count: int = 0
    unions: list[np.ndarray] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)
    pinned: list[tuple[np.ndarray, str]] = field(default_factory=list)
    loose: list[np.ndarray] = field(default_factory=list)
    roles: dict[tuple[int, int], str] = field(default_factory=dict)

    def fresh(self, count: int) -> Tensor:
        """Create `count` labels that nothing else carries."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Tie labels entry by entry (the two broadcast)."""
        pairs = _pairs(first, second)
        if len(pairs):
            self.unions.append(pairs)

    def nest(self, inner: Tensor, outer: Tensor) -> None:
        """Record `outer` as the block of `inner`, entry by entry (the two broadcast)."""
        pairs = _pairs(inner, outer)
        if len(pairs):
            self.blocks.append(pairs)

    def pin(self, labels: Tensor, reason: str) -> None:
        """Fix labels: their channels must stay where they are."""
        values = distinct(labels.numpy())
        values = values[values != ZERO]
        if len(values):
            self.pinned.append((values, reason))

    def split(self, factor: Factor, away: Iterable[int]) -> Factor | None:
        """Sum a factor over the axes `away`: return None where no axis is left, else the labels of its blocks.

        Labels that repeat along a kept axis (the same heads in every window) form one block.
        """
        away = frozenset(away)
        gone = factor.axes & away
        if not gone:
            return factor
        remaining = factor.axes - away
        if not remaining:
            return None
        shape = [size if axis in remaining else 1 for axis, size in enumerate(factor.labels.shape)]
        order = sorted(range(len(shape)), key=lambda axis: axis not in remaining)
        rows = factor.labels.permute(order).reshape(int(np.prod(shape)), -1)
        _, number = torch.unique(rows, dim=0, return_inverse=True)
        outer = self.fresh(int(number.max()) + 1)[number].reshape(shape)
        self.nest(factor.labels, outer)
        return Factor(outer)

    def settle(self, factor: Factor, away: Iterable[int]) -> Factor | None:
        """Keep positions along the axes `away` in their order: what lies along them is exchanged in whole blocks.

        Returns the labels of the blocks, with size 1 along `away`; None where the factor varies along no other axis.
        A linear layer's outputs that are viewed as channels of an image are such blocks, and so are the r * r channels
        that a pixel shuffle makes one of.
        """
        away = factor.axes & frozenset(away)
        remaining = factor.axes - away
        if not away or not remaining:
            return None if away else factor
        sizes = factor.labels.shape
        order = sorted(range(len(sizes)), key=lambda axis: axis not in remaining)
        kept = int(np.prod([sizes[axis] for axis in remaining]))
        rows = factor.labels.permute(order).reshape(kept, -1)
        columns, place = torch.unique(rows, dim=1, return_inverse=True)
        places = self.fresh(columns.shape[1])
        self.pin(places, PARTS)
        self.nest(rows, places[place][None])
        patterns, number = torch.unique(rows, dim=0, return_inverse=True)
        blocks = torch.where((patterns == ZERO).all(1), ZERO, self.fresh(len(patterns)))
        self.nest(rows, blocks[number][:, None])
        return Factor(blocks[number].reshape([size if axis in remaining else 1 for axis, size in enumerate(sizes)]))

    def single_out(self, labels: Labels) -> Labels:
        """Drop the factors with a single position, and pin it: no other can take its place."""
        for factor in labels.factors:
            if not factor.axes:
                self.pin(factor.labels, SINGLE)
        return replace(labels, factors=tuple(factor for factor in labels.factors if factor.axes))

    def joined(self, labels: Labels) -> Labels:
        """Join factors so that no two lie along one axis alone: each pair of labels there becomes a unit in two blocks.

        Two axes that permute independently may be merged into one: heads and a head's channels.
        """
        for axis in range(len(labels.shape)):
            alone = [factor for factor in labels.factors if factor.axes == {axis}]
            if len(alone) < 2:
                continue
            first, second = (factor.labels.reshape(-1) for factor in alone[:2])
            if np.isin(first.numpy(), second.numpy()).any():
                self.pin(first, PAIRS)
            _, unit = torch.unique(torch.stack([first, second]), dim=1, return_inverse=True)
            units = self.fresh(int(unit.max()) + 1)[unit]
            units = torch.where((first == ZERO) | (second == ZERO), ZERO, units)
            for part in (first, second):
                self.nest(units, part)
            factor = Factor(units.reshape([-1 if other == axis else 1 for other in range(len(labels.shape))]))
            rest = tuple(factor for factor in labels.factors if factor not in alone[:2])
            return self.joined(replace(labels, factors=(*rest, factor)))
        return labels

    def meet(self, first: Labels, second: Labels, reason: str) -> Labels:
        """Combine the labels of two tensors in an entry-by-entry operation (broadcast)."""
        rank = max(len(first.shape), len(second.shape))
        first, second = pad_rank(first, rank), pad_rank(second, rank)
        shape = tuple(max(sizes) for sizes in zip(first.shape, second.shape, strict=True))
        factors: list[Factor] = []
        unmatched = list(second.factors)
        for factor in first.factors:
            match = next((other for other in unmatched if other.axes == factor.axes), None)
            if match is not None:
                unmatched.remove(match)
            factors.append(factor if match is None else self._join(factor, match, first.plain, second.plain))
        alone = [factor for factor in first.factors if factor in factors]
        lost: set[Factor] = set()
        tied: dict[Factor, Factor] = {}
        for other in unmatched:
            for factor in alone:
                if other.axes < factor.axes:
                    tied[factor] = self._tie(tied.get(factor, factor), other, second.plain)
                    lost.add(other)
                elif factor.axes < other.axes:
                    tied[other] = self._tie(tied.get(other, other), factor, first.plain)
                    lost.add(factor)
                elif factor.axes & other.axes:
                    self._share_blocks(factor, other, reason)
        for mine, other_side in ((first, second), (second, first)):
            for factor in mine.factors:
                meeting = any(factor.axes & candidate.axes for candidate in other_side.factors)
                if meeting or not factor.axes & other_side.plain:
                    continue
                # The channels of an image that a shuffle made are blocks of its pixels, which stay in their order.
                blocks = self.settle(tied.get(factor, factor), other_side.plain)
                if blocks is None:
                    self.pin(factor.labels, TOUCHES_INPUT)
                    lost.add(factor)
                else:
                    tied[factor] = blocks
        united = tuple(tied.get(factor, factor) for factor in factors + unmatched if factor not in lost)
        return Labels(shape, united, first.plain | second.plain)

    def _tie(self, inner: Factor, outer: Factor, plain: frozenset[int]) -> Factor:
        """Tie a factor to one that varies along fewer axes: as blocks; in lockstep where the rest is plain.

        Returns the factor of the result: the inner one, or one of its own where several blocks share an inner label.
        """
        if inner.axes - outer.axes <= plain:
            self.unite(inner.labels, outer.labels)
            return inner
        pairs = distinct_pairs(_pairs(inner.labels, outer.labels))
        owners = np.unique(pairs[:, 0], return_counts=True)[1]
        if len(owners) and int(owners.max()) > 1 and not bool((inner.labels == ZERO).any()):
            shared = self._shared(inner.labels, outer.labels, pairs)
            if shared is not None:
                return Factor(shared)
        self.nest(inner.labels, outer.labels)
        return inner

    def _share_blocks(self, first: Factor, second: Factor, reason: str) -> None:
        """Tie two factors along the axes that they share: heads, in each of which both have positions of their own."""
        both = ((first, second), (second, first))
        # A block of zeros alone would be any block: only zeros beside labels, as padding of each head, are no matter.
        blocks = [None if one.all_zero(away := one.axes - other.axes) else self.split(one, away) for one, other in both]
        if None in blocks:
            self.pin(first.labels, reason)
            self.pin(second.labels, reason)
            return
        self.unite(*(block.labels for block in blocks if block is not None))

    def _shared(self, inner: Tensor, outer: Tensor, pairs: np.ndarray) -> Tensor | None:
        """Label the positions where blocks share their inner labels, as query heads share a key and a value.

        The blocks that share make one, in which each keeps its place. None where they do not share evenly.
        """
        blocks = distinct(pairs[:, 1])
        content = {block: tuple(pairs[pairs[:, 1] == block, 0].tolist()) for block in blocks.tolist()}
        sharing: dict[tuple[int, ...], list[int]] = {}
        for block, inside in content.items():
            sharing.setdefault(inside, []).append(block)
        if len({len(alike) for alike in sharing.values()}) > 1 or len(distinct(pairs[:, 0])) != sum(map(len, sharing)):
            return None
        place = {block: rank for alike in sharing.values() for rank, block in enumerate(alike)}
        for alike in sharing.values():
            self.unite(torch.tensor(alike), torch.tensor(alike[:1]))
        both = torch.stack([inner, outer.expand(inner.shape)]).flatten(1)
        names, number = np.unique(both.numpy(), axis=1, return_inverse=True)
        parts = torch.from_numpy(names)
        labels, places = self.fresh(parts.shape[1]), self.fresh(len(next(iter(sharing.values()))))
        self.pin(places, PARTS)
        self.nest(labels, parts[0])
        self.nest(labels, parts[1])
        self.nest(labels, places[torch.tensor([place[block] for block in parts[1].tolist()])])
        shared: Tensor = labels[torch.from_numpy(number.reshape(-1))].reshape(inner.shape)
        return shared

    def _join(self, first: Factor, second: Factor, *plain: frozenset[int]) -> Factor:
        """Make one factor of two that vary along the same axes; a zero takes the other's label.

        A label that repeats in one of them is a block of the other's: a statistic beside the entries behind it. Along
        a plain axis the repetitions are not the same entry, but a channel's pixels.
        """
        if len(first.axes) == 1 and first.labels.shape == second.labels.shape:
            for inner, outer, differs in ((first, second, plain[1]), (second, first, plain[0])):
                if not outer.axes & differs and _is_coarser(outer.labels, inner.labels):
                    self.nest(inner.labels, outer.labels)
                    return inner
        self.unite(first.labels, second.labels)
        if not bool((first.labels == ZERO).any()):
            return Factor(first.labels, first.source)
        return Factor(torch.where(first.labels == ZERO, second.labels, first.labels))


def _is_coarser(outer: Tensor, inner: Tensor) -> bool:
    """Tell whether the parts of `outer` are fewer, and each is a union of parts of `inner`; no zeros."""
    coarse, fine = outer.reshape(-1).numpy(), inner.reshape(-1).numpy()
    parts = len(distinct(coarse))
    if parts == len(coarse) or ZERO in coarse or ZERO in fine:
        return False
    count = len(distinct(fine))
    return parts < count == len(distinct_pairs(np.stack([fine, coarse], axis=1)))


def _pairs(first: Tensor, second: Tensor) -> np.ndarray:
    """List distinct pairs (n, 2) of labels at the same place, without zeros."""
    shape = [max(sizes) for sizes in zip(first.shape, second.shape, strict=True)]
    first, second = first.expand(shape), second.expand(shape)
    if first.numel() > 4096:
        first, second = _narrow_together(first, second)
    pairs = np.stack([first.reshape(-1).numpy(), second.reshape(-1).numpy()], axis=1)
    pairs = pairs[(pairs != ZERO).all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
    return distinct_pairs(pairs) if len(pairs) > 4096 else pairs


def _narrow_together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the axes along which neither of two broadcast tensors varies."""
    for axis in range(first.ndim):
        if first.stride(axis) == 0 and second.stride(axis) == 0:
            first, second = first.narrow(axis, 0, 1), second.narrow(axis, 0, 1)
    return first, second


def pad_rank(labels: Labels, rank: int) -> Labels:
    """Prepend axes of size 1, as broadcasting adds them."""
    extra = rank - len(labels.shape)
    if extra <= 0:
        return labels
    return Labels(
        (1,) * extra + labels.shape,
        tuple(replace(f, labels=f.labels.reshape((1,) * extra + tuple(f.labels.shape))) for f in labels.factors),
        frozenset(axis + extra for axis in labels.plain),
    )


def move(labels: Labels, movement: Any) -> Labels:
    """Apply data movement to labels: `movement` maps a tensor of the old shape to one of the new.

    A factor with a single remaining position has no axes any more (`Ledger.single_out`).
    """
    marked = torch.zeros((), dtype=torch.int8)
    outcome = movement(marked.expand(labels.shape))
    factors = tuple(f.with_labels(movement(f.labels.expand(labels.shape))) for f in labels.factors)
    plain = set()
    for axis in labels.plain:
        size = [1] * len(labels.shape)
        size[axis] = labels.shape[axis]
        counted = _narrowed(movement(torch.arange(size[axis]).reshape(size).expand(labels.shape)), size[axis], 1)
        plain |= {a for a, extent in enumerate(counted.shape) if extent > 1}
    return Labels(tuple(outcome.shape), factors, frozenset(plain))
