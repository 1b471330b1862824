"""Entry-by-entry operations: entries at the same place are tied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depfuse.groups.labels.labels import Factor, Labels, pad_rank
from depfuse.groups.labels.rules.operations import ENTRY_BY_ENTRY, result_shape
from depfuse.groups.labels.rules.replay import Operands, Replay, rule, varies
from depfuse.groups.reasons import CONSTANT


@rule(*ENTRY_BY_ENTRY)
def entry_by_entry(replay: Replay, operation: Any, operands: Operands) -> list[Labels]:
    """Tie operands of one shape, or broadcast to one; differing positions of a constant are pinned."""
    reason = f"{replay.where(operation)} ties its channels to positions that cannot be permuted"
    labelled = [labels for labels in operands if labels is not None]
    result = labelled[0]
    for other in labelled[1:]:
        result = replay.ledger.meet(result, other, reason)
    shape = result_shape(operation)
    result = pad_rank(result, len(shape))
    for constant in replay.constants.get(operation, ()):
        keep_values(replay, result, constant)
    factors = list(result.factors)
    for axis, size in enumerate(shape):
        if size != result.shape[axis]:  # a constant's axis, whose entries differ
            pinned = replay.ledger.fresh(size)
            replay.ledger.pin(pinned, CONSTANT)
            factors.append(Factor(pinned.reshape([-1 if other == axis else 1 for other in range(len(shape))])))
    return [Labels(shape, tuple(factors), result.plain)]


def keep_values(replay: Replay, labels: Labels, constant: Tensor) -> None:
    """Let only positions be exchanged at which a constant has the same values."""
    if constant.is_meta or constant.dim() > len(labels.shape):
        return
    constant = constant.reshape((1,) * (len(labels.shape) - constant.dim()) + tuple(constant.shape))
    for factor in labels.factors:
        axes = [axis for axis in sorted(factor.axes) if varies(constant, axis)]
        if not axes or any(factor.labels.shape[axis] != constant.shape[axis] for axis in axes):
            continue
        others = [axis for axis in range(constant.dim()) if axis not in axes]
        rows = constant.permute(*axes, *others).flatten(len(axes)).flatten(0, len(axes) - 1)
        values, number = torch.unique(rows.cpu(), dim=0, return_inverse=True)
        blocks = replay.ledger.fresh(len(values))
        replay.ledger.pin(blocks, CONSTANT)
        extent = [constant.shape[axis] if axis in axes else 1 for axis in range(constant.dim())]
        replay.ledger.nest(factor.labels, blocks[number].reshape(extent))
