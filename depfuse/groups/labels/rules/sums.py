"""Sums over an axis: summed entries may be exchanged, in blocks where a normalisation sums over parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from depfuse.groups.labels.labels import Labels, Ledger, move
from depfuse.groups.labels.rules.entries import entry_by_entry, keep_values
from depfuse.groups.labels.rules.operations import SUMS, saved_dims, signed
from depfuse.groups.labels.rules.replay import Operands, Replay, rule, unknown


def sum_over(ledger: Ledger, labels: Labels, dims: Iterable[int], keep: bool) -> Labels:
    """Label an order-free reduction over `dims`."""
    dims = sorted(set(dims))
    remaining = [axis for axis in range(len(labels.shape)) if axis not in dims]
    shape = [1 if axis in dims else size for axis, size in enumerate(labels.shape)]
    factors = [summed for factor in labels.factors if (summed := ledger.split(factor, dims)) is not None]
    result = Labels(tuple(shape), tuple(factors), labels.plain - set(dims))
    return result if keep else move(result, lambda t: t.reshape([shape[axis] for axis in remaining]))


@rule(*SUMS)
def _sum(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    if labels is None or len([o for o in operands if o is not None]) > 1:
        return entry_by_entry(replay, operation, operands)
    rank = len(labels.shape)
    keep = bool(getattr(operation, "_saved_keepdim", False))
    summed = sum_over(replay.ledger, labels, saved_dims(operation, "dim", rank), keep)
    return [summed] * len(operation._input_metadata)


@rule("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
def _difference(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Compare two tensors of one shape entry by entry, and sum over all of them unless nothing is reduced."""
    both = [labels for labels in operands if labels is not None]
    labels = both[0]
    for other in both[1:]:
        labels = replay.ledger.meet(labels, other, f"{replay.where(operation)} compares it")
    for constant in replay.constants.get(operation, ()):
        keep_values(replay, labels, constant)
    if operation._saved_reduction == 0:
        return [labels]
    return [sum_over(replay.ledger, labels, range(len(labels.shape)), False)]


@rule("Softmax", "LogSoftmax", "SafeSoftmax")
def _softmax(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    sum_over(replay.ledger, labels, saved_dims(operation, "dim", len(labels.shape)), True)
    return [labels]


def scaled(replay: Replay, labels: Labels, parameters: Sequence[Labels | None], axis: int) -> Labels:
    """Label scales and shifts along `axis` (the last axis where it is -1)."""
    for parameter in parameters:
        if parameter is None:
            continue
        if axis >= 0:
            shape = [1] * len(labels.shape)
            shape[axis] = parameter.shape[0]
            parameter = move(parameter, lambda t, shape=shape: t.reshape(shape))
        labels = replay.ledger.meet(labels, parameter, "is scaled by a tensor that cannot be permuted")
    return labels


@rule("NativeLayerNorm")
def _layer_norm(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    rank, count = len(labels.shape), len(operation._saved_normalized_shape)
    sum_over(replay.ledger, labels, range(rank - count, rank), True)
    return [scaled(replay, labels, operands[1:3], -1)]


@rule("WeightNormInterface")
def _weight_norm(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Label a weight divided by its norm over all axes but one, times a scale; the norm is the second result."""
    labels, scale = operands[:2]
    if labels is None or scale is None:
        return unknown(replay, operation, operands)
    rank = len(labels.shape)
    sum_over(replay.ledger, labels, set(range(rank)) - {signed(operation._saved_dim) % rank}, True)
    return [replay.ledger.meet(labels, scale, f"{replay.where(operation)} scales it"), scale]


@rule("NativeGroupNorm")
def _group_norm(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    groups = int(operation._saved_group)
    for factor in labels.factors:
        if 1 in factor.axes:
            outer = replay.ledger.fresh(groups).repeat_interleave(labels.shape[1] // groups)
            extent = [-1 if axis == 1 else 1 for axis in range(len(labels.shape))]
            replay.ledger.nest(factor.labels, outer.reshape(extent))
    return [scaled(replay, labels, operands[1:3], 1)]


@rule("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")
def _batch_norm(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    if getattr(operation, "_saved_training", True):
        sum_over(replay.ledger, labels, [a for a in range(len(labels.shape)) if a != 1], True)
    parameters = list(operands[1:3])
    for name in ("running_mean", "running_var"):
        statistic = getattr(operation, f"_saved_{name}", None)
        if statistic is not None and id(statistic) in replay.tensors:
            parameters.append(replay.leaf(statistic))
    return [scaled(replay, labels, parameters, 1)]
