"""Data movement: the same movement is applied to the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.groups.labels.labels import ZERO, Factor, Labels, compact, move
from depfuse.groups.labels.rules.operations import RESHAPES, result_shape, signed
from depfuse.groups.labels.rules.replay import Operands, Replay, rule, unknown
from depfuse.groups.reasons import CHOSEN, PARTS


def _moved(labels: Labels | None, movement: Callable[[Tensor], Tensor]) -> list[Labels]:
    assert labels is not None
    return [move(labels, movement)]


@rule(*RESHAPES)
def _reshape(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    return _moved(operands[0], lambda t: t.reshape(result_shape(operation)))


@rule("AsStrided")
def _as_strided(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Read a view of a tensor written in place, or another layout of it, as pooling channels-last to one pixel does."""
    labels = operands[0]
    region = replay.regions.get(operation)
    if labels is not None and region is not None:
        return _moved(labels, lambda t: region.view(t).reshape(result_shape(operation)))
    if labels is None or labels.shape != result_shape(operation):
        return unknown(replay, operation, operands)
    return [labels]


@rule("ViewAsReal")
def _real_and_imaginary(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Add a last axis: the real and the imaginary part, which keep their order."""
    (complex_,) = _moved(operands[0], lambda t: t[..., None])
    parts = replay.ledger.fresh(2)
    replay.ledger.pin(parts, PARTS)
    shape = result_shape(operation)
    factor = Factor(parts.reshape([1] * (len(shape) - 1) + [2]))
    return [Labels(shape, (*complex_.factors, factor), complex_.plain)]


@rule("ViewAsComplex")
def _complex(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Remove the last axis: its two parts keep their order, and each pair of them may move as one."""
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


@rule("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes")
def _split(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dim = signed(operation._saved_dim)
    sizes = getattr(operation, "_saved_split_sizes", None) or operation._saved_split_size
    sizes = [int(s) for s in sizes] if isinstance(sizes, (list, tuple)) else int(sizes)
    return _parts(operands[0], lambda t: torch.split(t, sizes, dim), len(operation._input_metadata))


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


@rule("ChannelShuffle")
def _channel_shuffle(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    parts = int(operation._saved_groups)
    return _moved(
        operands[0], lambda t: t.reshape(t.shape[0], parts, -1, *t.shape[2:]).transpose(1, 2).reshape(t.shape)
    )


@rule("Unfold")
def _windows(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    dim, size, step = signed(operation._saved_dimension), int(operation._saved_size), int(operation._saved_step)
    return _moved(operands[0], lambda t: t.unfold(dim, size, step))


@rule("Diagonal")
def _diagonal(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    offset, dims = int(operation._saved_offset), (signed(operation._saved_dim1), signed(operation._saved_dim2))
    return _moved(operands[0], lambda t: t.diagonal(signed(offset), *dims))


@rule("Index", "IndexSelect")
def _index(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    if hasattr(operation, "_saved_indices"):
        indices = tuple(operation._saved_indices)
    else:
        indices = (None,) * signed(operation._saved_dim) + (operation._saved_index,)
    if any(index is not None and index.is_meta for index in indices):
        return unknown(replay, operation, operands)
    if operation in replay.trace.chosen and operands[0] is not None:
        for axis in _indexed(indices):
            replay.pin_all(operands[0], axis, CHOSEN)
    where = tuple(slice(None) if index is None else index.cpu() for index in indices)
    return _moved(operands[0], lambda t: t[where])


def _indexed(indices: Iterable[Tensor | None]) -> list[int]:
    """List the axes that are read at positions; a mask covers as many as it has itself."""
    axes: list[int] = []
    axis = 0
    for index in indices:
        count = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        axes += range(axis, axis + count) if index is not None else ()
        axis += count
    return axes


@rule("Glu")
def _gated_linear_unit(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Multiply one half of an axis by the sigmoid of the other."""
    dim = signed(operation._saved_dim)
    first, second = _parts(operands[0], lambda t: t.chunk(2, dim), 2)
    return [replay.ledger.meet(first, second, f"{replay.where(operation)} ties its halves")]


@rule("ConstantPadNd")
def _pad(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    labels = operands[0]
    assert labels is not None
    rank = len(labels.shape)
    amounts = [signed(p) for p in operation._saved_pad]
    factors = []
    for factor in labels.factors:
        padding = [amount if rank - 1 - place // 2 in factor.axes else 0 for place, amount in enumerate(amounts)]
        factors.append(factor.with_labels(F.pad(factor.labels, padding, value=ZERO)))
    return [replace(labels, shape=tuple(result_shape(operation)), factors=tuple(factors))]
