"""Entry-by-entry operations: entries at the same place are tied."""

from __future__ import annotations

from typing import Any

from depfuse.groups.labels.labels import Factor, Labels, pad_rank
from depfuse.groups.labels.rules.operations import ENTRY_BY_ENTRY, result_shape
from depfuse.groups.labels.rules.replay import Operands, Replay, rule
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
    factors = list(result.factors)
    for axis, size in enumerate(shape):
        if size != result.shape[axis]:  # a constant's axis, whose entries differ
            pinned = replay.ledger.fresh(size)
            replay.ledger.pin(pinned, CONSTANT)
            factors.append(Factor(pinned.reshape([-1 if other == axis else 1 for other in range(len(shape))])))
    return [Labels(shape, tuple(factors), result.plain)]
