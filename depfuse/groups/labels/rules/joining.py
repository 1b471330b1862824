"""Parts of a tensor laid side by side: concatenations, and parts written in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depfuse.groups.labels.distinct import distinct
from depfuse.groups.labels.labels import ZERO, Factor, Labels, Ledger, move, pad_rank, reduced
from depfuse.groups.labels.rules.operations import operation_name, result_shape, saved_dims
from depfuse.groups.labels.rules.replay import Operands, Replay, rule, unknown
from depfuse.groups.reasons import PARTS, SINGLE, TOUCHES_INPUT
from depfuse.groups.tracing.overwrites import Region, take


def _with_constants(operands: Operands, shape: Sequence[int], dim: int) -> list[Labels] | None:
    """Return the parts of a concatenation with its constants; None where their sizes are unknown.

    A constant is taken for padding with zeros, as in shortcuts of option A: if it holds anything else, the proof fails.
    """
    labelled = [labels for labels in operands if labels is not None]
    missing = len(operands) - len(labelled)
    if not missing:
        return labelled
    if any(len(labels.shape) != len(shape) for labels in labelled):  # a stack, or an empty tensor among them
        return None
    size, rest = divmod(shape[dim] - sum(labels.shape[dim] for labels in labelled), missing)
    if size == 0 and rest == 0:
        return labelled
    if rest or size < 1:
        return None
    extent = [size if axis == dim else 1 for axis in range(len(shape))]
    padding = Labels(tuple(extent), (Factor(torch.full(extent, ZERO)),))
    return [padding if labels is None else labels for labels in operands]


def _renamed(ledger: Ledger, labels: Tensor) -> Tensor:
    """Give the positions of a tensor labels of their own, tied to those that it had."""
    values, place = np.unique(labels.numpy(), return_inverse=True)
    old = torch.from_numpy(values)
    new = torch.where(old == ZERO, ZERO, ledger.fresh(len(old)))
    ledger.unite(new, old)
    return new[torch.from_numpy(place.reshape(labels.shape))]


@rule("Cat", "Stack")
def _concatenate(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    shape = result_shape(operation)
    dim = saved_dims(operation, "dim", len(shape))[0]
    operands = [labels for labels in operands if labels is None or 0 not in labels.shape]
    parts = _with_constants(operands, shape, dim)
    if parts is None:
        return unknown(replay, operation, operands)
    if operation_name(operation) == "Stack":
        parts = [move(labels, lambda t: t.unsqueeze(dim)) for labels in parts]
    reason = f"{replay.where(operation)} joins it with positions that cannot be permuted"
    return [_joined(replay.ledger, [labels for labels in parts if len(labels.shape) == len(shape)], shape, dim, reason)]


def _joined(ledger: Ledger, parts: Sequence[Labels], shape: Sequence[int], dim: int, reason: str) -> Labels:
    """Concatenate labels of parts along `dim`."""
    along = [list(labels.on(dim)) for labels in parts]
    others = Labels(tuple(1 if a == dim else s for a, s in enumerate(shape)))
    plain: set[int] = set()
    for labels in parts:
        rest = tuple(factor for factor in labels.factors if dim not in factor.axes)
        others = ledger.meet(others, Labels(others.shape, rest, labels.plain - {dim}), reason)
        plain |= labels.plain
    factors = list(others.factors)
    if any(along):
        pieces = []
        extent = [1] * len(shape)
        for part_factors in along:
            for factor in part_factors:
                extent = [
                    max(a, b) if axis != dim else 1
                    for axis, (a, b) in enumerate(zip(extent, factor.labels.shape, strict=True))
                ]
        for labels, part_factors in zip(parts, along, strict=True):
            wanted = [labels.shape[dim] if axis == dim else size for axis, size in enumerate(extent)]
            if part_factors:
                pieces.append(part_factors[0].labels.expand(wanted))
                for extra in part_factors[1:]:
                    ledger.pin(extra.labels, reason)
            else:
                pinned = ledger.fresh(labels.shape[dim])
                if dim in labels.plain or labels.shape[dim] == 1:
                    ledger.pin(pinned, TOUCHES_INPUT if dim in labels.plain else SINGLE)
                pieces.append(pinned.reshape([-1 if a == dim else 1 for a in range(len(shape))]).expand(wanted))
        each = [distinct(piece.numpy()) for piece in pieces]
        if len(distinct(np.concatenate(each))) < sum(map(len, each)):
            pieces = [_renamed(ledger, piece) for piece in pieces]  # x beside f(x): two places of one channel
        factors.append(Factor(reduced(torch.cat(pieces, dim))))
        plain.discard(dim)
    elif len(parts) > 1:
        plain.add(dim)
    return Labels(tuple(shape), tuple(factors), frozenset(plain))


@rule("CopySlices")
def _overwrite(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Write a part of a tensor in place; written constants are taken for zeros, as in a concatenation."""
    region, base = replay.regions.get(operation), operands[0]
    if region is None or region.kind == "other":
        return unknown(replay, operation, operands)
    shape = result_shape(operation)
    base = Labels(shape, _zeros(shape)) if base is None else base
    lengths = [len(positions) for positions in region.positions]
    written = [pad_rank(labels, len(region.shape)) for labels in operands[1:] if labels is not None]
    others = [move(labels, region.unviewed) for labels in written]
    reason = f"{replay.where(operation)} ties its channels to positions that cannot be permuted"
    if region.kind == "update":
        _keep_apart(replay.ledger, base, region, frozenset(axis for labels in others for axis in _varying(labels)))
        others.append(move(base, region.read))
    part = others[0] if others else Labels(tuple(lengths), _zeros(lengths))
    for other in others[1:]:
        part = replay.ledger.meet(part, other, reason)
    return [_written(replay.ledger, base, part, region.positions, 0, reason)]


@rule("IndexPut")
def _put(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Write values at indices of neighbouring axes: tokens that are chosen or masked; constants count as zeros."""
    base, values, shape = operands[0], operands[1], result_shape(operation)
    indexed = _indexed(operation._saved_indices, shape)
    if indexed is None:
        return unknown(replay, operation, operands)
    axes, places = indexed
    before, after = shape[: axes[0]], shape[axes[-1] + 1 :]
    flat = (*before, math.prod(shape[axis] for axis in axes), *after)  # the indexed axes as one
    lengths = (*before, places.numel(), *after)
    part = Labels(lengths, _zeros(lengths))
    if values is not None:
        written = (*before, *places.shape, *after)
        part = move(pad_rank(values, len(written)), lambda t: t.expand(written).reshape(lengths))
    reason = f"{replay.where(operation)} ties its channels to positions that cannot be permuted"
    positions = [torch.arange(size) for size in flat]
    positions[len(before)] = places.reshape(-1)
    base = move(Labels(shape, _zeros(shape)) if base is None else base, lambda t: t.reshape(flat))
    if operation._saved_accumulate:
        part = replay.ledger.meet(move(base, lambda t: take(t, len(before), places.reshape(-1))), part, reason)
    return [move(_written(replay.ledger, base, part, positions, 0, reason), lambda t: t.reshape(shape))]


def _indexed(indices: Sequence[Tensor | None], shape: Sequence[int]) -> tuple[list[int], Tensor] | None:
    """Find the axes that are indexed, and the places written, counted as if these axes were one.

    Where nothing is written for the example, the first place stands for those of other inputs. None where the axes are
    no neighbours, or a place is written twice.
    """
    along: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.is_meta:
            return None
        masks = index is not None and index.dtype in (torch.bool, torch.uint8)
        along += index.cpu().nonzero(as_tuple=True) if masks else [index]  # type: ignore[union-attr]
    axes = [axis for axis, index in enumerate(along) if index is not None]
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        return None
    places = torch.zeros((), dtype=torch.int64)
    for axis, index in enumerate(along):
        if index is not None:
            places = places * shape[axis] + index.cpu().remainder(shape[axis])
    if not places.numel():
        return axes, torch.zeros(1, dtype=torch.int64)
    return (axes, places) if len(torch.unique(places)) == places.numel() else None


def _keep_apart(ledger: Ledger, base: Labels, region: Region, tied: frozenset[int]) -> None:
    """Let the inside and the outside of a region be permuted but not exchanged; ties in `tied` axes show that."""
    for axis, inside in enumerate(region.positions):
        if len(inside) == base.shape[axis] or axis in tied:
            continue
        everywhere = torch.arange(base.shape[axis])
        for factor in base.on(axis):
            blocks = ledger.fresh(2)
            ledger.pin(blocks, PARTS)
            extent = [-1 if other == axis else 1 for other in range(len(base.shape))]
            ledger.nest(factor.labels, blocks[torch.isin(everywhere, inside).long()].reshape(extent))


def _varying(labels: Labels) -> frozenset[int]:
    """Return the axes along which any factor varies."""
    return frozenset(axis for factor in labels.factors for axis in factor.axes)


def _zeros(shape: Sequence[int]) -> tuple[Factor, ...]:
    """Make factors of a tensor of zeros: along every axis, any positions fit."""
    rank = len(shape)
    places = [[size if other == axis else 1 for other in range(rank)] for axis, size in enumerate(shape) if size > 1]
    return tuple(Factor(torch.full(place, ZERO)) for place in places)


def _written(ledger: Ledger, base: Labels, part: Labels, positions: Sequence[Tensor], axis: int, reason: str) -> Labels:
    """Write `part` into `base` at the given positions along `axis` and all later axes."""
    if axis == len(base.shape):
        return part
    inside = positions[axis]
    if len(inside) == base.shape[axis]:
        return _written(ledger, base, part, positions, axis + 1, reason)
    everywhere = torch.arange(base.shape[axis])
    outside = everywhere[~torch.isin(everywhere, inside)]
    rest, within = (move(base, lambda t, chosen=chosen: take(t, axis, chosen)) for chosen in (outside, inside))
    parts = [rest, _written(ledger, within, part, positions, axis + 1, reason)]
    result = _joined(ledger, parts, base.shape, axis, reason)
    order = torch.argsort(torch.cat([outside, inside]))
    return move(result, lambda t: take(t, axis, order))
