"""Operations along space: positions there keep their order, and channels stay apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from depfuse.groups.labels.labels import Factor, Labels, move
from depfuse.groups.labels.rules.operations import result_shape, saved_dims, signed
from depfuse.groups.labels.rules.replay import Operands, Replay, plain_everywhere, rule, unknown, varies
from depfuse.groups.labels.rules.sums import sum_over
from depfuse.groups.reasons import CHOSEN, PARTS, PIXELS

SPATIAL = re.compile(
    r"(Adaptive)?(Avg|Max|Lp)Pool\dD(WithIndices)?|FractionalMaxPool\dD|Upsample\w+\dD(Aa)?|"
    r"(Reflection|Replication)Pad\dD|MkldnnAdaptive\w+"
)


def settled(replay: Replay, labels: Labels, axes: Iterable[int], reason: str) -> Labels:
    """Keep positions along `axes` in their order, and leave the labels of what lies along the others.

    `reason` is given for positions that lie along them alone, unless other labels lie along the channel axis.
    """
    axes = frozenset(axes)
    factors = []
    for factor in labels.factors:
        left = replay.ledger.settle(factor, axes)
        if left is None:
            beside = any(1 in other.axes for other in labels.factors if other is not factor)
            replay.ledger.pin(factor.labels, PIXELS if beside and 1 not in factor.axes else reason)
        else:
            factors.append(left)
    return replace(labels, factors=tuple(factors))


def along(replay: Replay, operation: Any, labels: Labels, axes: Iterable[int], reason: str) -> Labels:
    """Label the result of an operation that treats what lies along other axes than `axes` independently."""
    shape = result_shape(operation)
    axes = frozenset(axes)
    rest = settled(replay, labels, axes, reason)
    factors = tuple(
        replace(factor, labels=factor.labels[tuple(slice(0, size) for size in shape)]) for factor in rest.factors
    )
    plain = (labels.plain - axes) | {axis for axis in axes if shape[axis] > 1}
    return Labels(shape, factors, frozenset(plain))


@rule(SPATIAL)
def _spatial(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Label pooling, resizing and padding of the last axes."""
    labels = operands[0]
    assert labels is not None
    match = re.search(r"(\d)D", operation.name())
    rank = len(labels.shape)
    axes = range(rank - int(match.group(1) if match else 2), rank)
    result = along(replay, operation, labels, axes, f"{replay.where(operation)} mixes neighbouring channels")
    return [result] * len(operation._input_metadata)


@rule("FftR2C", "FftC2R", "FftC2C", "Cumsum", "Cumprod", "Cummax", "Cummin", "Logcumsumexp")
def _along_dims(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Label transforms and cumulative sums along dimensions."""
    labels = operands[0]
    assert labels is not None
    axes = saved_dims(operation, "dim", len(labels.shape))
    return [along(replay, operation, labels, axes, f"{replay.where(operation)} needs their order")] * len(
        operation._input_metadata
    )


@rule("Topk", "Sort", "Kthvalue")
def _order_statistics(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Label the largest along a dimension, or all in order: whatever the order they had, their places are ranks."""
    labels = operands[0]
    assert labels is not None
    axes = set(saved_dims(operation, "dim", len(labels.shape)))
    rest = sum_over(replay.ledger, labels, axes, True)
    shape = result_shape(operation)
    if len(shape) < len(rest.shape):
        rest = move(rest, lambda t: t.reshape(shape))
        axes = set()
    plain = rest.plain | {axis for axis in axes if shape[axis] > 1}
    return [Labels(shape, rest.factors, plain)] * len(operation._input_metadata)


@rule("Tril", "Triu")
def _triangle(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    rank = len(labels.shape)
    return [along(replay, operation, labels, (rank - 2, rank - 1), f"{replay.where(operation)} needs their order")]


@rule("MaxUnpool2D", "MaxUnpool3D")
def _unpool(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Put each channel's values where the largest of another tensor's same channel were."""
    labels = operands[0]
    assert labels is not None
    reason = f"{replay.where(operation)} reads the places of other channels"
    indices = operation._saved_indices.data_ptr()
    for pooling in replay.trace.operations:
        result = getattr(pooling, "_saved_result1", None)
        if isinstance(result, Tensor) and result.data_ptr() == indices and (pooling, 0) in replay.values:
            labels = replay.ledger.meet(labels, replay.values[pooling, 0], reason)
            return [along(replay, operation, labels, range(2, len(labels.shape)), reason)]
    return unknown(replay, operation, operands)


@rule("GridSampler2D", "GridSampler3D", "CudnnGridSampler")
def _grid_sample(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Sample each channel at the same points, whose coordinates keep their order."""
    labels, grid = operands
    for factor in grid.factors if grid is not None else ():
        replay.ledger.pin(factor.labels, PARTS)
    if labels is None:
        return [plain_everywhere(result_shape(operation))]
    return [along(replay, operation, labels, range(2, len(labels.shape)), PIXELS)]


@rule("torchvision_roi_align", "torchvision_roi_pool")
def _regions(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Pool each channel over regions whose coordinates keep their order: (B, C, H, W) -> (K, C, h, w)."""
    labels, regions = operands[:2]
    for factor in regions.factors if regions is not None else ():
        replay.ledger.pin(factor.labels, PARTS)
    if labels is None:
        return [plain_everywhere(result_shape(operation))]
    return [along(replay, operation, labels, (0, 2, 3), f"{replay.where(operation)} mixes neighbouring channels")]


@rule("Im2Col")
def _unfold(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Lay the positions of a window side by side behind each channel: (B, C, H, W) -> (B, C * k * k, L)."""
    assert operands[0] is not None
    batch, channels = operands[0].shape[0], operands[0].shape[1]
    if len(operands[0].shape) != 4:
        return unknown(replay, operation, operands)
    shape = result_shape(operation)
    labels = settled(replay, operands[0], (2, 3), f"{replay.where(operation)} slides over it")
    positions = shape[1] // channels
    moved = move(
        replace(labels, plain=labels.plain - {2, 3}),
        lambda t: t[:, :, None, :1, 0].expand(-1, -1, positions, shape[2]).reshape(batch, shape[1], shape[2]),
    )
    if not moved.on(1) and positions > 1:
        return [replace(moved, plain=moved.plain | {1, 2})]
    factors = []
    for factor in moved.factors:
        if 1 not in factor.axes or positions == 1:
            factors.append(factor)
            continue
        # The positions of a window have an order, so that each is a unit of its own in its channel's block.
        units, places = (
            replay.ledger.fresh(channels * positions).reshape(channels, positions),
            replay.ledger.fresh(positions),
        )
        replay.ledger.pin(places, PARTS)
        replay.ledger.nest(units, places[None])
        replay.ledger.nest(units, factor.labels.reshape(channels, positions)[:, :1])
        factors.append(Factor(units.reshape(1, -1, 1)))
    return [Labels(shape, tuple(factors), moved.plain | {2})]


@rule("Col2Im")
def _fold(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Add the positions of windows to an image: (B, C * k * k, L) -> (B, C, H, W)."""
    assert operands[0] is not None
    shape = result_shape(operation)
    rank = len(operands[0].shape)
    if rank != 3:
        return unknown(replay, operation, operands)
    batch, positions, windows = operands[0].shape
    apart = move(operands[0], lambda t: t.reshape(batch, shape[1], positions // shape[1], windows))
    labels = settled(replay, apart, (2, 3), f"{replay.where(operation)} adds windows of it")
    factors = tuple(labels.factors)
    spatial = {axis for axis in (2, 3) if shape[axis] > 1}
    return [Labels(shape, factors, frozenset((labels.plain - {2, 3}) | spatial))]


@rule("Gather", "TakeAlongDim")
def _gather(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Read entries along one axis; along an axis where the index does not change, all of them the same."""
    labels = operands[0]
    assert labels is not None
    axes = {axis for axis in range(operation._saved_index.dim()) if varies(operation._saved_index, axis)} | {
        signed(operation._saved_dim) % len(labels.shape)
    }
    return [along(replay, operation, labels, axes, CHOSEN)]


@rule("Scatter", "ScatterAdd", "IndexAdd", "IndexCopy", "IndexFill")
def _scatter(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Write entries along one axis; along an axis where the index does not change, all of them the same."""
    shape = result_shape(operation)
    index = operation._saved_index
    dim = signed(operation._saved_dim) % len(shape)
    axes = {dim} | (
        {axis for axis in range(index.dim()) if varies(index, axis)} if index.dim() == len(shape) else set()
    )
    result: Labels | None = None
    for labels in operands:
        if labels is None or len(labels.shape) != len(shape):
            continue
        if any(labels.shape[a] != shape[a] for a in range(len(shape)) if a not in axes):
            return unknown(replay, operation, operands)
        rest = along(replay, operation, labels, axes, CHOSEN)
        result = rest if result is None else replay.ledger.meet(result, rest, CHOSEN)
    return [result or plain_everywhere(shape)]
