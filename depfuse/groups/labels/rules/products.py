"""Products: entry-by-entry products followed by a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from depfuse.groups.labels.labels import ZERO, Factor, Labels, Ledger, move, pad_rank
from depfuse.groups.labels.rules.entries import keep_values
from depfuse.groups.labels.rules.operations import result_shape
from depfuse.groups.labels.rules.replay import Operands, Replay, rule, unknown, varies
from depfuse.groups.labels.rules.space import settled
from depfuse.groups.labels.rules.sums import scaled, sum_over
from depfuse.groups.reasons import CHOSEN, CONSTANT, KERNEL, MULTIPLIES_ZEROS, PARTS, TOUCHES_INPUT


def _product(
    replay: Replay, first: Labels, second: Labels, where: str, uniform: tuple[bool, bool] = (False, False)
) -> Labels:
    """Label a (batched) matrix product (..., i, k) x (..., k, j).

    `uniform` tells of each operand whether it is a constant that does not change along k, so that the other's entries
    there are added up, in any order.
    """
    rank = max(len(first.shape), len(second.shape))
    first, second = pad_rank(first, rank), pad_rank(second, rank)
    for labels, inner in ((first, rank - 1), (second, rank - 2)):
        replay.role(labels, inner, "consumes")
        replay.role(labels, 2 * rank - 3 - inner, "produces")
    reason = mixing = f"{where} sums it with positions that cannot be permuted"
    if rank - 1 in first.plain or rank - 2 in second.plain:
        reason = TOUCHES_INPUT
    for labels, axis, other, across, alike in (
        (first, rank - 1, second, rank - 2, uniform[1]),
        (second, rank - 2, first, rank - 1, uniform[0]),
    ):
        if alike:
            replay.ledger.loose.extend(factor.labels.reshape(-1).numpy() for factor in labels.on(axis))
        elif not other.on(across):
            replay.pin_all(labels, axis, reason)
        for factor in labels.on(axis):
            zeros = factor.axes == {axis} and bool((factor.labels == ZERO).any())
            if zeros:
                dead = factor.labels.reshape(-1) == ZERO
                for opposite in other.on(across):
                    replay.ledger.pin(opposite.labels.movedim(across, 0)[dead.nonzero().reshape(-1)], MULTIPLIES_ZEROS)
    joint = replay.ledger.meet(move(first, lambda t: t.unsqueeze(-1)), move(second, lambda t: t.unsqueeze(-3)), mixing)
    return sum_over(replay.ledger, joint, [rank - 1], False)


def _constant(value: Tensor | None) -> Labels | None:
    """Label a constant operand from the value that autograd saved: what differs along an axis stays there."""
    if value is None or value.is_meta:
        return None
    return Labels(tuple(value.shape), (), frozenset(a for a, size in enumerate(value.shape) if varies(value, a)))


def _saved(operation: Any, *names: str) -> Tensor | None:
    """Return the first of the tensors that autograd saved of an operation."""
    return next((value for name in names if (value := getattr(operation, f"_saved_{name}", None)) is not None), None)


def _operands_product(replay: Replay, operation: Any, pair: Operands, names: tuple[str, ...]) -> Labels | None:
    """Label the product of two operands, one of which may be a constant; None where that was not saved.

    `names` are those under which autograd saves them, of the first and then of the second.
    """
    if pair[0] is None and pair[1] is None:
        return None
    half = len(names) // 2
    first, second = (
        _constant(_saved(operation, *saved)) if labels is None else labels
        for labels, saved in zip(pair, (names[:half], names[half:]), strict=True)
    )
    if first is None or second is None:
        return None
    uniform = tuple(labels is None for labels in pair)
    inner = (len(first.shape) - 1 in first.plain, len(second.shape) - 2 in second.plain)
    alike = (uniform[0] and not inner[0], uniform[1] and not inner[1])
    return _product(replay, first, second, replay.where(operation), alike)


@rule("Mm", "Bmm", "Matmul")
def _matrix_product(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    result = _operands_product(replay, operation, operands[:2], ("self", "mat2"))
    return unknown(replay, operation, operands) if result is None else [result]


@rule("Addmm", "Baddbmm")
def _biased_product(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    result = _operands_product(replay, operation, operands[1:3], ("mat1", "batch1", "mat2", "batch2"))
    if result is None:
        return unknown(replay, operation, operands)
    bias = operands[0]
    if bias is None and getattr(operation, "_saved_beta", True):  # with 0 it is not read
        for constant in replay.constants.get(operation, ())[:1]:
            keep_values(replay, result, constant)
    return [result if bias is None else replay.ledger.meet(result, bias, replay.where(operation))]


@rule("GroupedMm")
def _product_by_experts(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Multiply rows (N, K), each by one of the matrices (E, K, M): the experts keep their order, which routes rows."""
    rows, experts = operands[:2]
    if rows is None or experts is None or len(rows.shape) != 2 or len(experts.shape) != 3:
        return unknown(replay, operation, operands)
    replay.pin_all(experts, 0, CHOSEN)
    rest = tuple(factor for factor in experts.factors if 0 not in factor.axes)
    one = move(replace(experts, factors=rest), lambda t: t[0])
    return [_product(replay, rows, one, replay.where(operation))]


@rule("Mv", "Addmv")
def _matrix_times_vector(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    *bias, matrix, vector = operands
    if matrix is None or vector is None:
        return unknown(replay, operation, operands)
    column = move(vector, lambda t: t.unsqueeze(-1))
    result = move(_product(replay, matrix, column, replay.where(operation)), lambda t: t.squeeze(-1))
    return [scaled(replay, result, bias, -1)]


@rule("Dot", "Vdot")
def _inner_product(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    first, second = operands
    if first is None or second is None:
        return unknown(replay, operation, operands)
    row, column = move(first, lambda t: t.unsqueeze(0)), move(second, lambda t: t.unsqueeze(1))
    return [move(_product(replay, row, column, replay.where(operation)), lambda t: t.reshape(()))]


@rule("Cdist", "EuclideanDist")
def _distances(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    first, second = operands[:2]
    if first is None or second is None:
        return unknown(replay, operation, operands)
    return [_product(replay, first, move(second, lambda t: t.transpose(-1, -2)), replay.where(operation))]


@rule("Linear", "MkldnnLinear")
def _linear(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels, weight = operands[:2]
    if labels is None or weight is None:
        return unknown(replay, operation, operands)
    result = _product(replay, labels, move(weight, lambda t: t.transpose(0, 1)), replay.where(operation))
    return [scaled(replay, result, operands[2:3], -1)]


@rule("Trilinear")
def _bilinear(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Label the sum over i and j of first (n, i) x weight (o, i, j) x second (n, j), as `nn.Bilinear` has it."""
    first, weight, second = operands
    dims = tuple(tuple(getattr(operation, f"_saved_{name}")) for name in ("expand1", "expand2", "expand3", "sumdim"))
    if first is None or weight is None or second is None or dims != ((1, 3), (0,), (1, 2), (2, 3)):
        return unknown(replay, operation, operands)
    where = replay.where(operation)
    replay.role(weight, 0, "produces")
    replay.role(weight, 2, "consumes")
    summed = _product(replay, move(first, lambda t: t.unsqueeze(0)), weight, where)  # (o, n, j)
    column = move(second, lambda t: t.unsqueeze(-1))
    result = _product(replay, move(summed, lambda t: t.transpose(0, 1)), column, where)
    return [move(result, lambda t: t.squeeze(-1))]


@rule(
    "ScaledDotProductFlashAttentionForCpu",
    "ScaledDotProductFlashAttention",
    "ScaledDotProductEfficientAttention",
    "ScaledDotProductCudnnAttention",
    "ScaledDotProductFusedAttentionOverrideable",
)
def _attention(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    query, key, value = operands[:3]
    if query is None or key is None or value is None:
        return unknown(replay, operation, operands)
    where = replay.where(operation)
    if query.shape[-3] != key.shape[-3]:  # heads that share keys and values
        times = query.shape[-3] // key.shape[-3]
        key, value = (move(labels, lambda t: t.repeat_interleave(times, -3)) for labels in (key, value))
    scores = _product(replay, query, move(key, lambda t: t.transpose(-1, -2)), where)
    if len(operands) > 3 and operands[3] is not None:
        scores = replay.ledger.meet(scores, operands[3], where)
    for mask in replay.constants.get(operation, ()):
        keep_values(replay, scores, mask)
    return [_product(replay, scores, value, where)]


@rule("Embedding")
def _embedding(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    table = operands[0]
    assert table is not None
    replay.pin_all(table, 0, TOUCHES_INPUT)
    replay.role(table, 1, "produces")
    shape = result_shape(operation)
    rank = len(shape)
    factors = tuple(factor.with_labels(factor.labels.reshape((1,) * (rank - 1) + (-1,))) for factor in table.on(1))
    return [Labels(shape, factors, frozenset(a for a in range(rank - 1) if shape[a] > 1))]


@rule("Convolution", "MkldnnConvolution", "CudnnConvolution", "SlowConv2D", "ConvolutionOverrideable")
def _convolution(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels, weight, bias = operands
    if labels is None:
        labels = _constant(_saved(operation, "input"))
    if weight is None:
        if labels is not None and (filtered := _filtered(replay, operation, labels, bias)) is not None:
            return filtered
        weight = _constant(_saved(operation, "weight"))  # the same for all channels
    if labels is None or weight is None or weight.plain & {0, 1}:
        return unknown(replay, operation, operands)
    weight = _without_kernel(replay.ledger, weight)
    groups = int(operation._saved_groups)
    weight = _rows_and_columns(replay.ledger, weight) if groups == 1 else weight
    transposed = bool(operation._saved_transposed)
    into, out = (0, 1) if transposed else (1, 0)
    replay.role(weight, into, "consumes")
    replay.role(weight, out, "produces")
    for axis in range(2, len(weight.shape)):
        replay.pin_all(weight, axis, KERNEL)
    labels = settled(replay, labels, range(2, len(labels.shape)), f"{replay.where(operation)} slides over it")
    incoming = _one_factor(replay, labels, 1, labels.shape[1], f"{replay.where(operation)} mixes it")
    rows = _weight_labels(weight, 0, groups)
    columns = _weight_labels(weight, 1, groups)
    blocks = replay.ledger.fresh(groups)[:, None]
    shape = result_shape(operation)
    inner = rows if transposed else columns  # (groups, inputs per group), or None where that is one
    outer = columns if transposed else rows
    if inner is not None:
        if incoming is None:
            replay.ledger.pin(inner, TOUCHES_INPUT)
        else:
            arriving = incoming.reshape(groups, -1)
            replay.ledger.unite(inner, arriving)
            replay.ledger.pin(inner.expand_as(arriving)[arriving == ZERO], MULTIPLIES_ZEROS)
    elif incoming is not None and groups == 1 and labels.shape[1] > 1:
        replay.ledger.pin(incoming, f"{replay.where(operation)} mixes it")
    if groups > 1:
        if incoming is not None:
            replay.ledger.nest(incoming.reshape(groups, -1), blocks)
        elif 1 in labels.plain:
            replay.ledger.pin(blocks, TOUCHES_INPUT)
        if inner is not None:
            replay.ledger.nest(inner, blocks)
        if outer is not None:
            replay.ledger.nest(outer, blocks)
    # What lies along the batch: heads, or the channels of a filter that is itself convolved with another.
    batch = tuple(factor for factor in labels.factors if factor.axes == {0})
    if shape[1] == 1:
        return [Labels(shape, batch, _spatial_axes(shape))]
    produced = blocks.expand(groups, shape[1] // groups) if outer is None else outer
    produced = produced.reshape([-1 if axis == 1 else 1 for axis in range(len(shape))])
    result = Labels(shape, (Factor(produced), *batch), _spatial_axes(shape))
    return [scaled(replay, result, [bias], 1)]


def _filtered(replay: Replay, operation: Any, labels: Labels, bias: Labels | None) -> list[Labels] | None:
    """Label each channel behind constant filters of its own, as blurs and edge detectors have them; None for others.

    Channels with the same filters may be exchanged, each with all that was made of it.
    """
    value, channels = _saved(operation, "weight"), labels.shape[1]
    if value is None or value.is_meta or int(operation._saved_groups) != channels:
        return None
    where = replay.where(operation)
    labels = settled(replay, labels, range(2, len(labels.shape)), f"{where} slides over it")
    incoming = _one_factor(replay, labels, 1, channels, f"{where} mixes it")
    shape = result_shape(operation)
    if incoming is None:
        return [Labels(shape, (), _spatial_axes(shape) | {1})]
    kinds, kind = torch.unique(value.reshape(channels, -1).cpu(), dim=0, return_inverse=True)
    if len(kinds) > 1:
        alike = replay.ledger.fresh(len(kinds))
        replay.ledger.pin(alike, CONSTANT)
        replay.ledger.nest(incoming, alike[kind])
    made = incoming[:, None]
    if shape[1] > channels:
        made = replay.ledger.fresh(shape[1]).reshape(channels, -1)
        places = replay.ledger.fresh(made.shape[1])
        replay.ledger.pin(places, PARTS)
        replay.ledger.nest(made, places[None])
        replay.ledger.nest(made, incoming[:, None])
    result = Labels(
        shape, (Factor(made.reshape([-1 if axis == 1 else 1 for axis in range(len(shape))])),), _spatial_axes(shape)
    )
    return [scaled(replay, result, [bias], 1)]


def _spatial_axes(shape: Sequence[int]) -> frozenset[int]:
    return frozenset(axis for axis in range(2, len(shape)) if shape[axis] > 1)


def _one_factor(replay: Replay, labels: Labels, axis: int, size: int, reason: str) -> Tensor | None:
    """Return the labels (size,) along an axis, None where there are none; pin other factors there."""
    alone = [factor for factor in labels.on(axis) if factor.axes == {axis}]
    for factor in labels.on(axis):
        if not alone or factor is not alone[0]:
            replay.ledger.pin(factor.labels, reason)
    return alone[0].labels.reshape(size) if alone else None


def _without_kernel(ledger: Ledger, weight: Labels) -> Labels:
    """Restrict factors along inputs and kernel together, as weight standardisation gives them, to inputs.

    A kernel's positions stay where they are, so an input moves with all of its positions.
    """
    factors = []
    for factor in weight.factors:
        labels = factor.labels
        if factor.axes & {0, 1}:
            for axis in range(2, labels.ndim):
                labels = labels.narrow(axis, 0, 1)
            ledger.unite(factor.labels, labels)
        factors.append(replace(factor, labels=labels))
    return replace(weight, factors=tuple(factors))


def _rows_and_columns(ledger: Ledger, weight: Labels) -> Labels:
    """Divide factors along outputs and inputs together, as a filter that is computed has them, into one of each."""
    factors: list[Factor] = []
    for factor in weight.factors:
        if not factor.axes >= {0, 1}:
            factors.append(factor)
            continue
        for axis in (0, 1):
            extent = [size if other == axis else 1 for other, size in enumerate(factor.labels.shape)]
            blocks = ledger.fresh(factor.labels.shape[axis]).reshape(extent)
            ledger.nest(factor.labels, blocks)
            factors.append(Factor(blocks))
    return replace(weight, factors=tuple(factors))


def _weight_labels(weight: Labels, axis: int, groups: int) -> Tensor | None:
    """Return labels of a convolution weight's axis (groups, positions per group); None where it has one position."""
    factors = weight.on(axis)
    if axis == 0:
        outer = [factor for factor in factors if factor.axes == {0}]
        return outer[0].labels.reshape(groups, -1) if outer else None
    joint = [factor for factor in factors if 1 in factor.axes]
    if not joint:
        return None
    labels = joint[0].labels.reshape(joint[0].labels.shape[0], -1)
    if len(labels) == 1:
        return labels.expand(groups, -1)
    return labels.reshape(groups, -1, labels.shape[1])[:, 0]
