"""Smaller images on which a network runs the same operations: a claim about channels is proved on them as well.

What a proof costs grows with the number of places in an image, and what it shows does not, so long as every operation
is there, with the same arguments, and no map of features becomes so small that its places are alike. Both sizes are
compared operation by operation, on tensors without data (torch's meta device): names, arguments, shapes.

- An axis has the same extent in both, or a smaller one of at least `LEAST` places.
- Integers are the same but where they are sizes (`SIZES`); other arguments are the same.
- Nothing is enlarged that was not: an adaptive pooling to 7 x 7 from 3 x 3 would repeat places.
- No tensor has data: values that code makes from a size in another way are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.groups.channel_group import ChannelGroups
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.dispatch import Watching
from depfuse.networks.forward import Example, run_network
from depfuse.networks.isolation import seeded
from depfuse.networks.running import evaluating

LEAST = 3  # places along an axis, so that a border, an inner place and the other border differ
STEP = 32  # pixels, the total stride of most classifiers
WORTH = 0.75  # of a side: larger images save too little
COST = 2**39  # parameters x pixels, from which on it takes less than torch's import of operations without data (2.4 s)
SIZES = frozenset(
    {
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "_reshape_alias",
        "_unsafe_view",
        "adaptive_avg_pool1d",
        "arange",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "constant_pad_nd",
        "empty",
        "expand",
        "max_pool2d_with_indices",
        "ones",
        "new_empty",
        "new_ones",
        "new_zeros",
        "pad",
        "reshape",
        "slice",
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "view",
        "zeros",
    }
)  # fmt: skip  operations whose integers are sizes

BATCH_NORM = torch.ops.aten.native_batch_norm.default

Arguments = list[Any]


def smaller_example(model: nn.Module, groups: ChannelGroups, example: Example) -> Tensor | None:
    """Find the smallest image, or volume, on which a network runs the same operations as on the example.

    None where there is none that is worth it: the example is something else, the proof is cheap, the network takes one
    size only, or it does other things on smaller ones, or what it does depends on values.
    """
    if not isinstance(example, Tensor) or example.dim() < 4 or len(example) != 1 or groups.both_ways:
        return None
    sides = example.shape[2:]
    candidates = range(2 * STEP, int(WORTH * max(sides)) + 1, STEP)
    if not candidates or sum(own.numel() for own in model.parameters()) * math.prod(sides) < COST:
        return None
    try:
        network = evaluation_copy(model, shared=True).to("meta")
        modes = [(), groups.auxiliary] if groups.auxiliary else [()]
        full = [_operations(network, example, auxiliary) for auxiliary in modes]
    except Exception:  # whatever the user's network raises on tensors without data
        return None
    for side in candidates:
        smaller = example
        for axis, own in enumerate(sides, 2):
            smaller = smaller.narrow(axis, 0, min(own, STEP * math.ceil(own * side / max(sides) / STEP)))
        smaller = smaller.contiguous()
        try:
            for auxiliary, operations in zip(modes, full, strict=True):
                _operations(network, smaller, auxiliary, operations)
        except Exception:  # it takes no such image, or does something else there
            continue
        return smaller
    return None


class _OtherError(Exception):
    """Another operation than expected."""


class _Operations(Watching):  # type: ignore[no-untyped-call]
    """Recorder of operations with the shapes of their operands; raises at one that differs from those expected."""

    def __init__(self, expected: Sequence[Arguments] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Arguments] = []
        self._expected = expected

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _run(func, args, kwargs or {})
        own = [func, *map(_described, tree_leaves((args, kwargs or {}))), None, *map(_described, tree_leaves(result))]
        if self._expected is not None:
            number = len(self.seen)
            if number == len(self._expected) or not _corresponds(self._expected[number], own):
                raise _OtherError(f"{func}")
        self.seen.append(own)
        return result


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation on tensors without data; torch's BatchNorm of these takes as long as all else together."""
    if func is BATCH_NORM and len(args) > 5 and not args[5]:  # by running statistics: one output, and two of no size
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    return func(*args, **kwargs)


def _operations(
    network: nn.Module, example: Tensor, auxiliary: Iterable[str], expected: Sequence[Arguments] | None = None
) -> list[Arguments]:
    """List the operations of a network without data; raise at one that does not correspond to those expected."""
    images, recorder = example.to("meta"), _Operations(expected)
    with (
        torch.no_grad(),
        evaluating(network, auxiliary=auxiliary),
        seeded(0, torch.device("cpu")),
        recorder,
    ):
        run_network(network, images)
    if expected is not None and len(recorder.seen) != len(expected):
        raise _OtherError("fewer operations")
    return recorder.seen


def _described(leaf: Any) -> Any:
    """Describe an operand: the shape of a tensor, or the operand itself."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.device.type != "meta":
        raise _OtherError("a tensor with data")
    return tuple(leaf.shape)


def _corresponds(full: Arguments, small: Arguments) -> bool:
    """Tell whether an operation is the same on a smaller image."""
    if full[0] is not small[0] or len(full) != len(small):
        return False
    sizes = full[0].overloadpacket.__name__ in SIZES
    if not all(_same(a, b, sizes) for a, b in zip(full[1:], small[1:], strict=True)):
        return False
    shapes = [(a, b) for a, b in zip(full, small, strict=True) if isinstance(a, tuple)]
    if len(shapes) < 2:
        return True
    (full_in, small_in), (full_out, small_out) = shapes[0], shapes[-1]
    return len(full_in) != len(full_out) or not any(
        after <= before and own_after > own_before
        for before, after, own_before, own_after in zip(full_in, full_out, small_in, small_out, strict=True)
    )


def _same(full: Any, small: Any, sizes: bool) -> bool:
    """Tell whether two operands are the same, but for the size of the image."""
    if isinstance(full, tuple) and isinstance(small, tuple):
        return len(full) == len(small) and all(
            own == other or LEAST <= other < own for own, other in zip(full, small, strict=True)
        )
    if type(full) is not type(small):
        return False
    return bool(full == small) or (sizes and type(full) is int and 0 < small < full)
