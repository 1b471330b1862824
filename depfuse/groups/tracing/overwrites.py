"""Detection of in-place writes to a part of a tensor: `x[:, :8] += y`, `bias[16:32].zero_()`.

Autograd records such a write as `CopySlices` without the part that was written; reading through the view again is
an `AsStrided` of the whole. Both are inferred while the network runs, from the view's place in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depfuse.groups.labels.labels import compact
from depfuse.networks.leaves import tensors_in

Kind = Literal["set", "update", "other"]
Place = tuple[tuple[Tensor, ...], tuple[int, ...]]  # positions in each axis of a tensor, and an order of its axes
NAMES = """
    add sub mul div pow neg abs exp log sqrt rsqrt sin cos erf tanh sigmoid relu relu6 hardtanh hardswish hardsigmoid
    silu gelu elu celu selu mish leaky_relu threshold clamp clamp_min clamp_max clip masked_fill dropout lerp addcmul
    addcdiv floor ceil round nan_to_num square reciprocal rrelu multiply subtract divide true_divide
    iadd isub imul itruediv ipow
"""
SETS = frozenset({"zero", "fill", "copy", "setitem"})
# By their names, less the underscores: of tensor methods and of functions with inplace=True.
UPDATES = frozenset(NAMES.split())

METADATA = (int, float, str, torch.Size, torch.dtype, torch.device, torch.layout)  # results that hold no tensor


@dataclass(frozen=True)
class Region:
    """A part of a tensor that is a product of positions along each axis.

    Attributes
    ----------
    positions
        Per axis of the tensor, the positions in it, in order.
    shape
        Shape of the view, which may lack axes of one position.
    kind
        `set` where the part was overwritten, `update` where it changed entry by entry, else `other`.
    order
        Axes of the tensor in the order in which the view runs through them.
    """

    positions: tuple[Tensor, ...]
    shape: tuple[int, ...]
    kind: Kind
    order: tuple[int, ...]

    def read(self, tensor: Tensor) -> Tensor:
        """Read the part of a tensor, with as many axes as the tensor."""
        for axis, positions in enumerate(self.positions):
            tensor = take(tensor, axis, positions)
        return tensor

    def view(self, tensor: Tensor) -> Tensor:
        """Read the part of a tensor as the view shows it."""
        return self.read(tensor).permute(self.order).reshape(self.shape)

    def unviewed(self, part: Tensor) -> Tensor:
        """Arrange what is written through the view, with as many axes as the view, as `read` returns it."""
        lengths = [len(self.positions[axis]) for axis in self.order]
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return part.expand(self.shape).reshape(lengths).permute(back)


def take(tensor: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Select positions along one axis; broadcast axes stay broadcast."""
    shape = [*tensor.shape[:axis], len(positions), *tensor.shape[axis + 1 :]]
    small = compact(tensor)
    return (small if tensor.stride(axis) == 0 else small.index_select(axis, positions)).expand(shape)


class OverwriteWatch(TorchFunctionMode):
    """Recorder, while it is active, of regions that in-place functions write and that views read afterwards.

    Attributes
    ----------
    regions
        Autograd function (`CopySlices`, `AsStrided`) -> region of its operand; None where it cannot be described.
    """

    def __init__(self) -> None:
        super().__init__()
        self.regions: dict[Any, Region | None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function and record its writes."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, METADATA):
            return result
        with torch._C.DisableTorchFunction():  # what is asked here is nothing for the other modes
            for operand in tensors_in(args, kwargs, result):
                if operand.requires_grad and operand.layout is torch.strided:
                    self._note(func, operand, args)
        return result

    def _note(self, func: Callable[..., Any], operand: Tensor, args: Sequence[Any]) -> None:
        base = operand if operand._base is None else operand._base
        writer, reader = base.grad_fn, operand.grad_fn
        if writer is None or not writer.name().endswith("CopySlices"):
            return
        if writer not in self.regions:
            name = getattr(func, "__name__", "").strip("_")
            kind: Kind = "set" if name in SETS else "update" if name in UPDATES else "other"
            written = operand.detach()
            if name == "setitem":
                written = written[args[1]] if operand is args[0] else written[:0]
            self.regions[writer] = _region(base, written, kind)
        if reader is not None and reader is not writer and reader not in self.regions and "AsStrided" in reader.name():
            self.regions[reader] = _region(base, operand.detach(), "other")


def _region(base: Tensor, view: Tensor, kind: Kind) -> Region | None:
    """Find the region of a view in its base; None where it is no product of positions."""
    if base.is_meta or not view.numel():
        return None
    place = place_by_strides(base, view) or place_by_entries(base, view)
    return None if place is None else Region(place[0], tuple(view.shape), kind, place[1])


def place_by_entries(base: Tensor, view: Tensor) -> Place | None:
    """Find the positions of a view's entries in its base along each axis, and the view's order of axes."""
    start = base.storage_offset()
    end = 1 + max(_last(base), _last(view))
    order = torch.full((end - start,), -1)
    order.as_strided(base.shape, base.stride()).copy_(torch.arange(base.numel()).reshape(base.shape))
    flat = order.as_strided(view.shape, view.stride(), view.storage_offset() - start).reshape(-1)
    if bool((flat < 0).any()):
        return None
    along = torch.unravel_index(flat, tuple(base.shape))
    positions = tuple(_occurring(each, size) for each, size in zip(along, base.shape, strict=True))
    part = torch.arange(base.numel()).reshape(base.shape)
    part = part[torch.meshgrid(*positions, indexing="ij")] if positions else part
    several = [axis for axis, inside in enumerate(positions) if len(inside) > 1]
    for moved in permutations(several):
        turned = iter(moved)
        axes = tuple(next(turned) if axis in several else axis for axis in range(len(positions)))
        if torch.equal(part.permute(axes).reshape(-1), flat):
            return positions, axes
    return None


def place_by_strides(base: Tensor, view: Tensor) -> Place | None:
    """Find the positions of a view and its order of axes by strides alone, where each axis is one of the base's.

    None where it is not so, or the base's entries do not lie one axis within another.
    """
    steps = base.stride()
    nested = sorted((axis for axis, size in enumerate(base.shape) if size > 1), key=lambda axis: -steps[axis])
    inside = 1
    for axis in reversed(nested):
        if steps[axis] < inside:
            return None
        inside += (base.shape[axis] - 1) * steps[axis]

    def place(offset: int) -> list[int] | None:
        found = [0] * base.dim()
        for axis in nested:
            found[axis], offset = divmod(offset, steps[axis])
        return found if not offset and all(at < size for at, size in zip(found, base.shape, strict=True)) else None

    offset = int(view.storage_offset() - base.storage_offset())
    first = place(offset) if offset >= 0 else None
    if first is None:
        return None
    positions = [torch.tensor([at]) for at in first]
    moved: list[int] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size == 1:
            continue
        last = place(int(offset + (size - 1) * stride))
        changed = [axis for axis in range(base.dim()) if last is not None and last[axis] != first[axis]]
        if last is None or len(changed) != 1 or changed[0] in moved or stride % steps[changed[0]]:
            return None
        moved += changed
        positions[changed[0]] = first[changed[0]] + torch.arange(size) * (stride // steps[changed[0]])
    turned = iter(moved)
    return tuple(positions), tuple(next(turned) if axis in moved else axis for axis in range(base.dim()))


def _occurring(values: Tensor, size: int) -> Tensor:
    """List the distinct values below `size`, sorted."""
    occurs = torch.zeros(size, dtype=torch.bool)
    occurs[values] = True
    return occurs.nonzero().reshape(-1)


def _last(tensor: Tensor) -> int:
    """Compute the storage position of a tensor's last entry."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + sum(steps))
