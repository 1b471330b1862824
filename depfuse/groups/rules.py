"""What each operation does to labels: the one place that knows operations.

DepGraph's nodes say which operation followed which; these rules say which entries it ties. There are three
kinds: *movement* (the same movement is applied to the labels), *entry by entry* (`Ledger.meet`) and *sums*
(`Ledger.split`); matrix products and convolutions are an entry-by-entry product followed by a sum. An
operation without a rule pins everything it touches, with a reason that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.groups.depgraph import Trace
from depfuse.groups.labels import SINGLE, TOUCHES_INPUT, ZERO, Factor, Labels, Ledger, compact, move, pad_rank, reduced
from depfuse.groups.overwrites import Region, take

TOUCHES_OUTPUT = "touches the network's output"
KERNEL = "positions of a convolution's kernel"
CONSTANT = "tied to a constant"
PARTS = "parts that are not interchangeable"
MULTIPLIES_ZEROS = "multiplies channels that are always zero"

Operands = list["Labels | None"]
Rule = Callable[["Replay", Any, Operands], "list[Labels]"]
RULES: dict[str, Rule] = {}

ENTRY_BY_ENTRY = """
    Add Sub Mul Div Pow Neg Abs Sign Exp Expm1 Log Log1P Sqrt Rsqrt Square Reciprocal Sin Cos Erf Tanh Sigmoid
    LogSigmoid Relu Relu6 Hardtanh Hardswish Hardsigmoid Silu Gelu Elu Celu Selu Softplus Softsign Mish
    LeakyRelu PreluKernel Threshold Clamp ClampMin ClampMax Where MaskedFill NativeDropout FusedDropout
    Maximum Minimum Lerp Addcmul Addcdiv Clone ToCopy Alias Copy Contiguous Hardshrink Softshrink
    RreluWithNoise Floor Ceil Round Detach Fmod Remainder NanToNum
""".split()
RESHAPES = """
    View UnsafeView ReshapeAlias Reshape Squeeze Unsqueeze Flatten Unflatten ViewCopy
""".split()
SUMS = """
    Mean Sum Amax Amin Max Min Var Std VarMean StdMean LinalgVectorNorm Norm Logsumexp Prod
""".split()
SPATIAL = re.compile(
    r"(Adaptive)?(Avg|Max|Lp)Pool\dD(WithIndices)?|Upsample\w+\dD(Aa)?|(Reflection|Replication)Pad\dD|MkldnnAdaptive\w+"
)
IN_PLACE_NAMES = re.compile(r"Backward\d*$")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Replay:
    """Walks a trace in forward order and fills a ledger."""

    def __init__(self, trace: Trace, regions: Mapping[Any, Region | None] | None = None) -> None:
        self.trace = trace
        self.regions = regions or {}
        self.ledger = Ledger()
        self.values: dict[tuple[Any, int], Labels] = {}
        self.leaves: dict[int, Labels] = {}
        self._grouped = _grouped_weights(trace)
        self._tensors = {id(tensor): tensor for tensor in trace.tensors.values()}

    def run(self) -> None:
        """Apply the rule of every operation, then pin the outputs."""
        for operation in self.trace.operations:
            operands = [self.operand(below, number) for below, number in operation.next_functions]
            for number, labels in enumerate(lookup(operation)(self, operation, operands)):
                self.values[operation, number] = self.ledger.joined(self.ledger.single_out(labels))
        for output in self.trace.outputs:
            if output in self.values:
                for factor in self.values[output].factors:
                    self.ledger.pin(factor.labels, TOUCHES_OUTPUT)

    def operand(self, below: Any, number: int) -> Labels | None:
        """Labels of an operand; None for a constant."""
        if below is None:
            return None
        if hasattr(below, "variable"):
            return self.leaf(below.variable)
        return self.values.get((below, number))

    def leaf(self, tensor: Tensor) -> Labels:
        """Labels of a parameter or buffer, made when it is first used; anything else is an input."""
        shape = tuple(tensor.shape)
        if id(tensor) not in self._tensors:
            return Labels(shape, (), frozenset(axis for axis, size in enumerate(shape) if size > 1))
        if id(tensor) not in self.leaves:
            blocks = self._grouped.get(id(tensor), 1)
            constant = self._is_constant(tensor)
            factors = []
            for axis, size in enumerate(shape):
                if size == 1 or (constant and _uniform(tensor, axis)):
                    continue
                extent = [size if other == axis else 1 for other in range(len(shape))]
                if axis == 1 and blocks > 1:
                    labels = self.ledger.fresh(blocks * size).reshape(blocks, size)
                    labels = labels.repeat_interleave(shape[0] // blocks, 0)
                    extent[0] = shape[0]
                else:
                    labels = self.ledger.fresh(size)
                if constant:
                    self.ledger.pin(labels, CONSTANT)
                factors.append(Factor(labels.reshape(extent), (id(tensor), axis)))
            self.leaves[id(tensor)] = Labels(shape, tuple(factors))
        return self.leaves[id(tensor)]

    def _is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is no state of the network (a non-persistent buffer), or a table that is not trained."""
        table = not isinstance(tensor, nn.Parameter) and sum(size > 1 for size in tensor.shape) > 1
        return table or not self.trace.leaves[id(tensor)]

    def role(self, labels: Labels, axis: int, role: str) -> None:
        """Note what the parameter's axis that gave the factors on `axis` does."""
        for factor in labels.on(axis):
            if factor.source is not None:
                self.ledger.roles.setdefault(factor.source, role)

    def pin_all(self, labels: Labels | None, axis: int, reason: str) -> None:
        """Pin every factor that varies along `axis`."""
        for factor in labels.on(axis) if labels is not None else ():
            self.ledger.pin(factor.labels, reason)

    def where(self, operation: Any) -> str:
        """'Name in module path', for messages."""
        module = self.trace.module_of(operation)
        return f"{operation_name(operation)} in {module or 'the network itself'}"


def operation_name(operation: Any) -> str:
    """An autograd function's name without its suffix: 'ConvolutionBackward0' -> 'Convolution'."""
    return IN_PLACE_NAMES.sub("", operation.name().rsplit("::", 1)[-1])


def result_shape(operation: Any, number: int = 0) -> tuple[int, ...]:
    """Shape of an operation's result."""
    return tuple(int(size) for size in operation._input_metadata[number].shape)


def signed(value: int) -> int:
    """Autograd saves negative dimensions as unsigned 64-bit integers."""
    return value - (1 << 64) if value >= 1 << 63 else value


def saved_dims(operation: Any, name: str, rank: int) -> tuple[int, ...]:
    """A saved dimension or list of dimensions, counted from the front; all of them where none is saved."""
    dims = getattr(operation, f"_saved_{name}", None)
    if dims is None:
        return tuple(range(rank))
    values = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(signed(v) % max(rank, 1) for v in values) or tuple(range(rank))


def _grouped_weights(trace: Trace) -> dict[int, int]:
    """Id of each weight of a grouped convolution -> number of groups.

    Found by walking up from its uses, through what standardises or scales a weight.
    """
    found: dict[int, int] = {}
    for operation in trace.operations:
        if operation_name(operation) != "Convolution" or operation._saved_groups == 1:
            continue
        stack, seen = [operation.next_functions[1][0]], set()
        while stack:
            below = stack.pop()
            if below is None or below in seen:
                continue
            seen.add(below)
            if hasattr(below, "variable"):
                if below.variable.ndim > 2:
                    found[id(below.variable)] = operation._saved_groups
            elif operation_name(below) in (*ENTRY_BY_ENTRY, *RESHAPES, *SUMS, "NativeBatchNorm", "CudnnBatchNorm"):
                stack.extend(function for function, _ in below.next_functions)
    return found


def _unknown(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    reason = f"the effect of {replay.where(operation)} on channels is unknown"
    for labels in operands:
        for factor in labels.factors if labels is not None else ():
            replay.ledger.pin(factor.labels, reason)
    results = range(len(operation._input_metadata))
    return [plain_everywhere(result_shape(operation, number)) for number in results]


def _uniform(tensor: Tensor, axis: int) -> bool:
    """Whether a tensor's values do not change along an axis."""
    first = tensor.detach().narrow(axis, 0, 1)
    return not tensor.is_meta and torch.equal(first.expand_as(tensor), tensor.detach())


def plain_everywhere(shape: Sequence[int]) -> Labels:
    """Labels of a tensor none of whose entries may be permuted."""
    return Labels(tuple(shape), (), frozenset(axis for axis, size in enumerate(shape) if size > 1))


@rule(*ENTRY_BY_ENTRY)
def _entry_by_entry(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    reason = f"{replay.where(operation)} ties its channels to positions that cannot be permuted"
    known = [labels for labels in operands if labels is not None]
    result = known[0]
    for other in known[1:]:
        result = replay.ledger.meet(result, other, reason)
    shape = result_shape(operation)
    result = pad_rank(result, len(shape))
    factors = list(result.factors)
    for axis, size in enumerate(shape):
        if size != result.shape[axis]:  # a constant's axis, whose entries differ
            own = replay.ledger.fresh(size)
            replay.ledger.pin(own, CONSTANT)
            factors.append(Factor(own.reshape([-1 if other == axis else 1 for other in range(len(shape))])))
    return [Labels(shape, tuple(factors), result.plain)]


# --- movement -------------------------------------------------------------------------------------


def _moved(labels: Labels | None, movement: Callable[[Tensor], Tensor]) -> list[Labels]:
    assert labels is not None
    return [move(labels, movement)]


@rule(*RESHAPES)
def _reshape(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    return _moved(operands[0], lambda t: t.reshape(result_shape(operation)))


@rule("AsStrided")
def _as_strided(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """A view of a tensor written in place, or another layout of it, as pooling channels-last to one pixel asks for."""
    labels = operands[0]
    region = replay.regions.get(operation)
    if labels is not None and region is not None:
        return _moved(labels, lambda t: region.read(t).reshape(result_shape(operation)))
    if labels is None or labels.shape != result_shape(operation):
        return _unknown(replay, operation, operands)
    return [labels]


@rule("ViewAsReal")
def _real_and_imaginary(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """A last axis more: the real and the imaginary part, which keep their order."""
    (complex_,) = _moved(operands[0], lambda t: t[..., None])
    own = replay.ledger.fresh(2)
    replay.ledger.pin(own, PARTS)
    shape = result_shape(operation)
    factor = Factor(own.reshape([1] * (len(shape) - 1) + [2]))
    return [Labels(shape, (*complex_.factors, factor), complex_.plain)]


@rule("ViewAsComplex")
def _complex(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """A last axis less: its two parts keep their order, and each pair of them may move as one."""
    labels = operands[0]
    assert labels is not None
    last = len(labels.shape) - 1
    parts = replay.ledger.fresh(2)
    replay.ledger.pin(parts, PARTS)
    for factor in labels.on(last):
        replay.ledger.nest(factor.labels, parts.reshape([1] * last + [2]))
    pairs = (replay.ledger.split(factor, [last]) for factor in labels.factors)
    return _moved(replace(labels, factors=tuple(pair for pair in pairs if pair)), lambda t: t[..., 0])


@rule("Permute")
def _permute(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dims = tuple(signed(d) for d in operation._saved_dims)
    return _moved(operands[0], lambda t: t.permute(dims))


@rule("Transpose", "T")
def _transpose(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    first, second = getattr(operation, "_saved_dim0", 0), getattr(operation, "_saved_dim1", 1)
    return _moved(operands[0], lambda t: t.transpose(signed(first), signed(second)) if t.ndim > 1 else t)


@rule("Expand")
def _expand(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    return _moved(operands[0], lambda t: t.expand(result_shape(operation)))


@rule("Slice")
def _slice(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dim, step = signed(operation._saved_dim), operation._saved_step
    start, end = signed(operation._saved_start), signed(operation._saved_end)
    return _moved(operands[0], lambda t: t.movedim(dim, 0)[start:end:step].movedim(0, dim))


@rule("Select")
def _select(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dim, index = signed(operation._saved_dim), signed(operation._saved_index)
    return _moved(operands[0], lambda t: t.select(dim, index))


def _parts(labels: Labels | None, movement: Callable[[Tensor], Sequence[Tensor]], count: int) -> list[Labels]:
    assert labels is not None
    return [move(labels, lambda t, part=part: movement(t)[part]) for part in range(count)]


@rule("Split", "SplitWithSizes")
def _split(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dim = signed(operation._saved_dim)
    sizes = getattr(operation, "_saved_split_sizes", None) or operation._saved_split_size
    sizes = [int(s) for s in sizes] if isinstance(sizes, (list, tuple)) else int(sizes)
    return _parts(operands[0], lambda t: torch.split(t, sizes, dim), len(operation._input_metadata))


@rule("Glu")
def _gated_linear_unit(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """One half of an axis times the sigmoid of the other."""
    dim = signed(operation._saved_dim)
    first, second = _parts(operands[0], lambda t: t.chunk(2, dim), 2)
    return [replay.ledger.meet(first, second, f"{replay.where(operation)} ties its halves")]


@rule("Unbind")
def _unbind(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dim = signed(operation._saved_dim)
    return _parts(operands[0], lambda t: t.unbind(dim), len(operation._input_metadata))


@rule("Roll")
def _roll(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    shifts, dims = [signed(s) for s in operation._saved_shifts], [signed(d) for d in operation._saved_dims]
    return _moved(operands[0], lambda t: t.roll(shifts, dims))


@rule("Flip")
def _flip(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dims = [signed(d) for d in operation._saved_dims]

    def flipped(tensor: Tensor) -> Tensor:
        # Flipping would write broadcast axes out, and their labels would seem to vary.
        return compact(tensor).flip(dims).expand(tensor.shape)

    return _moved(operands[0], flipped)


@rule("Repeat")
def _repeat(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    repeats = [int(r) for r in operation._saved_repeats]
    return _moved(operands[0], lambda t: t.repeat(repeats))


@rule("PixelShuffle")
def _pixel_shuffle(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    factor = int(operation._saved_upscale_factor)
    return _moved(operands[0], lambda t: F.pixel_shuffle(t, factor))


@rule("PixelUnshuffle")
def _pixel_unshuffle(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    factor = int(operation._saved_downscale_factor)
    return _moved(operands[0], lambda t: F.pixel_unshuffle(t, factor))


@rule("Index", "IndexSelect")
def _index(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    if hasattr(operation, "_saved_indices"):
        indices = tuple(operation._saved_indices)
    else:
        indices = (None,) * signed(operation._saved_dim) + (operation._saved_index,)
    if any(index is not None and index.is_meta for index in indices):
        return _unknown(replay, operation, operands)
    where = tuple(slice(None) if index is None else index.cpu() for index in indices)
    return _moved(operands[0], lambda t: t[where])


@rule("ConstantPadNd")
def _pad(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    rank = len(labels.shape)
    amounts = [signed(p) for p in operation._saved_pad]
    factors = []
    for factor in labels.factors:
        own = [amount if rank - 1 - place // 2 in factor.axes else 0 for place, amount in enumerate(amounts)]
        factors.append(factor.with_labels(F.pad(factor.labels, own, value=ZERO)))
    return [replace(labels, shape=tuple(result_shape(operation)), factors=tuple(factors))]


def _with_constants(operands: Operands, shape: Sequence[int], dim: int) -> list[Labels] | None:
    """The parts of a concatenation, constants among them; None where their sizes cannot be told.

    A constant is taken for padding with zeros, as in shortcuts of option A: if it holds anything else, the proof says
    so.
    """
    known = [labels for labels in operands if labels is not None]
    missing = len(operands) - len(known)
    if not missing:
        return known
    if any(len(labels.shape) != len(shape) for labels in known):  # a stack, or an empty tensor among them
        return None
    size, rest = divmod(shape[dim] - sum(labels.shape[dim] for labels in known), missing)
    if rest or size < 1:
        return None
    extent = [size if axis == dim else 1 for axis in range(len(shape))]
    padding = Labels(tuple(extent), (Factor(torch.full(extent, ZERO)),))
    return [padding if labels is None else labels for labels in operands]


def _renamed(ledger: Ledger, labels: Tensor) -> Tensor:
    """Labels of their own for the positions of a tensor, tied to those that it had."""
    found, place = np.unique(labels.numpy(), return_inverse=True)
    known = torch.from_numpy(found)
    own = torch.where(known == ZERO, ZERO, ledger.fresh(len(known)))
    ledger.unite(own, known)
    return own[torch.from_numpy(place.reshape(labels.shape))]


@rule("Cat", "Stack")
def _concatenate(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    shape = result_shape(operation)
    dim = saved_dims(operation, "dim", len(shape))[0]
    parts = _with_constants(operands, shape, dim)
    if parts is None:
        return _unknown(replay, operation, operands)
    if operation_name(operation) == "Stack":
        parts = [move(labels, lambda t: t.unsqueeze(dim)) for labels in parts]
    reason = f"{replay.where(operation)} joins it with positions that cannot be permuted"
    return [_joined(replay.ledger, [labels for labels in parts if len(labels.shape) == len(shape)], shape, dim, reason)]


def _joined(ledger: Ledger, parts: Sequence[Labels], shape: Sequence[int], dim: int, reason: str) -> Labels:
    """Labels of parts laid one after the other along `dim`."""
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
        for found in along:
            for factor in found:
                extent = [
                    max(a, b) if axis != dim else 1
                    for axis, (a, b) in enumerate(zip(extent, factor.labels.shape, strict=True))
                ]
        for labels, found in zip(parts, along, strict=True):
            wanted = [labels.shape[dim] if axis == dim else size for axis, size in enumerate(extent)]
            if found:
                pieces.append(found[0].labels.expand(wanted))
                for extra in found[1:]:
                    ledger.pin(extra.labels, reason)
            else:
                own = ledger.fresh(labels.shape[dim])
                if dim in labels.plain or labels.shape[dim] == 1:
                    ledger.pin(own, TOUCHES_INPUT if dim in labels.plain else SINGLE)
                pieces.append(own.reshape([-1 if a == dim else 1 for a in range(len(shape))]).expand(wanted))
        each = [np.unique(piece.numpy()) for piece in pieces]
        if len(np.unique(np.concatenate(each))) < sum(map(len, each)):
            pieces = [_renamed(ledger, piece) for piece in pieces]  # x beside f(x): two places of one channel
        factors.append(Factor(reduced(torch.cat(pieces, dim))))
        plain.discard(dim)
    elif len(parts) > 1:
        plain.add(dim)
    return Labels(tuple(shape), tuple(factors), frozenset(plain))


@rule("CopySlices")
def _overwrite(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """A part of a tensor written in place; constants written are taken for zeros, as in a concatenation."""
    region, base = replay.regions.get(operation), operands[0]
    if region is None or region.kind == "other":
        return _unknown(replay, operation, operands)
    shape = result_shape(operation)
    base = Labels(shape, _zeros(shape)) if base is None else base
    kept = [len(positions) for positions in region.positions]
    others = [_as_part(labels, region.shape, kept) for labels in operands[1:] if labels is not None]
    reason = f"{replay.where(operation)} ties its channels to positions that cannot be permuted"
    if region.kind == "update":
        _keep_apart(replay.ledger, base, region, frozenset(axis for labels in others for axis in _varying(labels)))
        others.append(move(base, region.read))
    part = others[0] if others else Labels(tuple(kept), _zeros(kept))
    for other in others[1:]:
        part = replay.ledger.meet(part, other, reason)
    return [_written(replay.ledger, base, part, region.positions, 0, reason)]


def _keep_apart(ledger: Ledger, base: Labels, region: Region, tied: frozenset[int]) -> None:
    """What is in the region and what is not may be permuted, but not exchanged; axes in `tied` show that by ties."""
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
    """The axes along which any factor varies."""
    return frozenset(axis for factor in labels.factors for axis in factor.axes)


def _zeros(shape: Sequence[int]) -> tuple[Factor, ...]:
    """Factors of a tensor of zeros: along every axis, any positions fit."""
    rank = len(shape)
    places = [[size if other == axis else 1 for other in range(rank)] for axis, size in enumerate(shape) if size > 1]
    return tuple(Factor(torch.full(place, ZERO)) for place in places)


def _as_part(labels: Labels, view: Sequence[int], kept: Sequence[int]) -> Labels:
    """Labels of what is written, with all axes of the tensor that it is written to."""
    return move(pad_rank(labels, len(view)), lambda t: t.expand(view).reshape(list(kept)))


def _written(ledger: Ledger, base: Labels, part: Labels, positions: Sequence[Tensor], axis: int, reason: str) -> Labels:
    """Labels of `base` with `part` at the given positions along `axis` and all later axes."""
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


# --- sums and statistics --------------------------------------------------------------------------


def _sum_over(ledger: Ledger, labels: Labels, dims: Sequence[int], keep: bool) -> Labels:
    """Labels after an order-free reduction over `dims`."""
    dims = sorted(set(dims))
    kept = [axis for axis in range(len(labels.shape)) if axis not in dims]
    shape = [1 if axis in dims else size for axis, size in enumerate(labels.shape)]
    factors = [summed for factor in labels.factors if (summed := ledger.split(factor, dims)) is not None]
    result = Labels(tuple(shape), tuple(factors), labels.plain - set(dims))
    return result if keep else move(result, lambda t: t.reshape([shape[axis] for axis in kept]))


@rule(*SUMS)
def _sum(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    if labels is None or len([o for o in operands if o is not None]) > 1:
        return _entry_by_entry(replay, operation, operands)
    rank = len(labels.shape)
    keep = bool(getattr(operation, "_saved_keepdim", False))
    summed = _sum_over(replay.ledger, labels, saved_dims(operation, "dim", rank), keep)
    return [summed] * len(operation._input_metadata)


@rule("Softmax", "LogSoftmax")
def _softmax(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    _sum_over(replay.ledger, labels, saved_dims(operation, "dim", len(labels.shape)), True)
    return [labels]


def _scaled(replay: Replay, labels: Labels, parameters: Sequence[Labels | None], axis: int) -> Labels:
    """Labels after scales and shifts along `axis` (the last axis where it is -1)."""
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
    _sum_over(replay.ledger, labels, range(rank - count, rank), True)
    return [_scaled(replay, labels, operands[1:3], -1)]


@rule("NativeGroupNorm")
def _group_norm(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    groups = int(operation._saved_group)
    for factor in labels.factors:
        if factor.axes == {1}:
            outer = replay.ledger.fresh(groups).repeat_interleave(labels.shape[1] // groups)
            replay.ledger.nest(factor.labels.reshape(-1), outer)
        elif 1 in factor.axes:
            replay.ledger.pin(factor.labels, f"{replay.where(operation)} mixes it with other positions")
    return [_scaled(replay, labels, operands[1:3], 1)]


@rule("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")
def _batch_norm(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    if getattr(operation, "_saved_training", True):
        _sum_over(replay.ledger, labels, [a for a in range(len(labels.shape)) if a != 1], True)
    parameters = list(operands[1:3])
    for name in ("running_mean", "running_var"):
        statistic = getattr(operation, f"_saved_{name}", None)
        if statistic is not None and id(statistic) in replay._tensors:
            parameters.append(replay.leaf(statistic))
    return [_scaled(replay, labels, parameters, 1)]


def _spatial(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Pooling, resizing and padding of the last axes."""
    labels = operands[0]
    assert labels is not None
    found = re.search(r"(\d)D", operation.name())
    rank = len(labels.shape)
    axes = set(range(rank - int(found.group(1) if found else 2), rank))
    factors = []
    for factor in labels.factors:
        if factor.axes & axes:
            replay.ledger.pin(factor.labels, f"{replay.where(operation)} mixes neighbouring channels")
        else:
            factors.append(factor)
    shape = result_shape(operation)
    plain = (labels.plain - axes) | {axis for axis in axes if shape[axis] > 1}
    return [Labels(shape, tuple(factors), frozenset(plain))]


# --- products -------------------------------------------------------------------------------------


def _product(replay: Replay, first: Labels, second: Labels, where: str) -> Labels:
    """Labels of a (batched) matrix product (..., i, k) x (..., k, j)."""
    rank = max(len(first.shape), len(second.shape))
    first, second = pad_rank(first, rank), pad_rank(second, rank)
    for labels, inner in ((first, rank - 1), (second, rank - 2)):
        replay.role(labels, inner, "consumes")
        replay.role(labels, 2 * rank - 3 - inner, "produces")
    reason = f"{where} sums it with positions that cannot be permuted"
    if rank - 1 in first.plain or rank - 2 in second.plain:
        reason = TOUCHES_INPUT
    for labels, axis, other, across in (
        (first, rank - 1, second, rank - 2),
        (second, rank - 2, first, rank - 1),
    ):
        if not other.on(across):
            replay.pin_all(labels, axis, reason)
        for factor in labels.on(axis):
            zeros = factor.axes == {axis} and bool((factor.labels == ZERO).any())
            if zeros:
                dead = factor.labels.reshape(-1) == ZERO
                for opposite in other.on(across):
                    replay.ledger.pin(opposite.labels.movedim(across, 0)[dead.nonzero().reshape(-1)], MULTIPLIES_ZEROS)
    joint = replay.ledger.meet(move(first, lambda t: t.unsqueeze(-1)), move(second, lambda t: t.unsqueeze(-3)), reason)
    return _sum_over(replay.ledger, joint, [rank - 1], False)


@rule("Mm", "Bmm", "Matmul")
def _matrix_product(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    first, second = operands[:2]
    if first is None or second is None:
        return _unknown(replay, operation, operands)
    return [_product(replay, first, second, replay.where(operation))]


@rule("Addmm", "Baddbmm")
def _biased_product(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    bias, first, second = operands
    if first is None or second is None:
        return _unknown(replay, operation, operands)
    result = _product(replay, first, second, replay.where(operation))
    return [result if bias is None else replay.ledger.meet(result, bias, replay.where(operation))]


@rule("Linear", "MkldnnLinear")
def _linear(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels, weight = operands[:2]
    if labels is None or weight is None:
        return _unknown(replay, operation, operands)
    result = _product(replay, labels, move(weight, lambda t: t.transpose(0, 1)), replay.where(operation))
    return [_scaled(replay, result, operands[2:3], -1)]


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
        return _unknown(replay, operation, operands)
    where = replay.where(operation)
    scores = _product(replay, query, move(key, lambda t: t.transpose(-1, -2)), where)
    if len(operands) > 3 and operands[3] is not None:
        scores = replay.ledger.meet(scores, operands[3], where)
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
    if labels is None or weight is None:
        return _unknown(replay, operation, operands)
    weight = _without_kernel(replay.ledger, weight)
    groups = int(operation._saved_groups)
    transposed = bool(operation._saved_transposed)
    into, out = (0, 1) if transposed else (1, 0)
    replay.role(weight, into, "consumes")
    replay.role(weight, out, "produces")
    for axis in range(2, len(weight.shape)):
        replay.pin_all(weight, axis, KERNEL)
        replay.pin_all(labels, axis, f"{replay.where(operation)} slides over it")
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
    if shape[1] == 1:
        return [Labels(shape, (), _spatial_axes(shape))]
    produced = blocks.expand(groups, shape[1] // groups) if outer is None else outer
    produced = produced.reshape([-1 if axis == 1 else 1 for axis in range(len(shape))])
    result = Labels(shape, (Factor(produced),), _spatial_axes(shape))
    return [_scaled(replay, result, [bias], 1)]


def _spatial_axes(shape: Sequence[int]) -> frozenset[int]:
    return frozenset(axis for axis in range(2, len(shape)) if shape[axis] > 1)


def _one_factor(replay: Replay, labels: Labels, axis: int, size: int, reason: str) -> Tensor | None:
    """The labels (size,) along an axis; None where there are none. Other factors there are pinned."""
    found = [factor for factor in labels.on(axis) if factor.axes == {axis}]
    for factor in labels.on(axis):
        if not found or factor is not found[0]:
            replay.ledger.pin(factor.labels, reason)
    return found[0].labels.reshape(size) if found else None


def _without_kernel(ledger: Ledger, weight: Labels) -> Labels:
    """Factors that lie along inputs and kernel together, as weight standardisation gives them, along inputs only.

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


def _weight_labels(weight: Labels, axis: int, groups: int) -> Tensor | None:
    """Labels of a convolution weight's axis as (groups, positions per group); None where it has one position."""
    found = weight.on(axis)
    if axis == 0:
        own = [factor for factor in found if factor.axes == {0}]
        return own[0].labels.reshape(groups, -1) if own else None
    joint = [factor for factor in found if 1 in factor.axes]
    if not joint:
        return None
    labels = joint[0].labels.reshape(joint[0].labels.shape[0], -1)
    if len(labels) == 1:
        return labels.expand(groups, -1)
    return labels.reshape(groups, -1, labels.shape[1])[:, 0]


def lookup(operation: Any) -> Rule:
    """The rule of an operation."""
    name = operation_name(operation)
    if name in RULES:
        return RULES[name]
    return _spatial if SPATIAL.fullmatch(name) else _unknown
