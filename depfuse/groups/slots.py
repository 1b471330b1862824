"""Members of a channel group: slots, axes of tensors that are permuted, and taps, where its activations are seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["produces", "consumes", "scales"]
Side = Literal["input", "output"]
Position = Literal["before", "after"]


@dataclass(frozen=True, eq=False, repr=False)
class Slot:
    """One tensor axis, or a part of it, that carries the channels of a group.

    Attributes
    ----------
    key
        Name in the state dict.
    axis
        The axis of that tensor.
    index
        (n_channels, repeats) int64; row c holds the positions on the axis that belong to channel c.
    role
        `produces` (output axis of a layer), `consumes` (input axis) or `scales` (normalisation, bias,
        gates and other bare parameters).
    within
        None, or (axis, positions): the slot covers only these positions of another axis. The input
        axis of a grouped convolution needs it, whose rows belong to different blocks.
    """

    key: str
    axis: int
    index: Tensor
    role: Role
    within: tuple[int, Tensor] | None = None

    def __repr__(self) -> str:
        return f"Slot({self.role} {self.key}, axis {self.axis}, {tuple(self.index.shape)} positions)"

    def read(self, tensor: Tensor) -> Tensor:
        """Read the slot's entries, channel first: (n_channels, repeats * size of all other axes)."""
        part = tensor if self.within is None else tensor.index_select(self.within[0], self.within[1])
        part = part.movedim(self.axis, 0)
        return part[self.index.to(part.device)].reshape(len(self.index), -1)

    def write(self, tensor: Tensor, entries: Tensor) -> Tensor:
        """Copy `tensor` with `entries` in the slot, laid out as `read` returns them."""
        result = tensor.clone()
        part = result if self.within is None else result.index_select(*self.within)
        moved = part.movedim(self.axis, 0)
        index = self.index.to(tensor.device)
        moved[index.reshape(-1)] = entries.reshape(index.numel(), *moved.shape[1:]).to(tensor.dtype)
        if self.within is not None:
            result.index_copy_(*self.within, part)
        return result

    def permute(self, tensor: Tensor, permutation: Tensor) -> Tensor:
        """Copy `tensor` with old channel permutation[c] in the place of channel c."""
        order = torch.arange(tensor.shape[self.axis])
        order[self.index] = self.index[permutation.cpu()]
        if self.within is None:
            return _reordered(tensor, self.axis, order)
        order = order.to(tensor.device)
        axis, positions = self.within[0], self.within[1].to(tensor.device)
        part = tensor.index_select(axis, positions).index_select(self.axis, order)
        return tensor.index_copy(axis, positions, part)

    def permute_(self, tensor: Tensor, permutation: Tensor) -> None:
        """Permute as `permute` does, in place: only the slot's own entries are read and written."""
        targets = self.index.reshape(-1).to(tensor.device)
        sources = self.index[permutation.cpu()].reshape(-1).to(tensor.device)
        if self.within is None:
            tensor.index_copy_(self.axis, targets, tensor.index_select(self.axis, sources))
            return
        axis, positions = self.within[0], self.within[1].to(tensor.device)
        first, count = int(positions[0]), len(positions)
        together = torch.equal(positions, torch.arange(first, first + count, device=tensor.device))
        part = tensor.narrow(axis, first, count) if together else tensor.index_select(axis, positions)
        part.index_copy_(self.axis, targets, part.index_select(self.axis, sources))
        if not together:
            tensor.index_copy_(axis, positions, part)

    def covers(self, tensor: Tensor) -> bool:
        """Tell whether every entry of a tensor lies in the slot."""
        return self.within is None and self.index.numel() == tensor.shape[self.axis]


def _reordered(tensor: Tensor, axis: int, order: Tensor) -> Tensor:
    """Select along an axis as `index_select` does, which takes three times as long where entries lie one by one.

    Those that stay neighbours, as the places of a channel in a flattened map do, are copied together.
    """
    run = _run(order)
    order = order.to(tensor.device)
    if run > 1:
        runs = tensor.reshape(*tensor.shape[:axis], -1, run, *tensor.shape[axis + 1 :])
        return runs.index_select(axis, order[::run] // run).view(tensor.shape)
    if axis == 0 or math.prod(tensor.shape[axis + 1 :]) > 1:
        return tensor.index_select(axis, order)
    rows = tensor.reshape(-1, tensor.shape[axis])
    return rows.gather(1, order.expand_as(rows)).view(tensor.shape)


def _run(order: Tensor) -> int:
    """Compute how many neighbours stay together everywhere, each run beginning at a multiple of its length."""
    ends = (order.diff() != 1).nonzero().view(-1) + 1
    run = math.gcd(len(order), *ends.tolist())
    return run if run and not bool((order[::run] % run).any()) else 1


def permuted(state: Mapping[str, Tensor], moves: Iterable[tuple[Sequence[Slot], Tensor]]) -> dict[str, Tensor]:
    """Permute the slots of several groups in turn, in a new state dict; tensors without a slot are shared with `state`.

    Each entry of a tensor is copied once, and then once for every slot that it lies in: what a grouped convolution
    costs does not grow with its number of blocks.
    """
    result = dict(state)
    own: set[str] = set()
    for slots, permutation in moves:
        for slot in slots:
            tensor = result[slot.key]
            if slot.covers(tensor):
                result[slot.key] = slot.permute(tensor, permutation)
            else:
                result[slot.key] = tensor = tensor if slot.key in own else tensor.clone()
                slot.permute_(tensor, permutation)
            own.add(slot.key)
    return result


@dataclass(frozen=True, eq=False, repr=False)
class Tap:
    """A module whose input or output carries a group's channels.

    `index` is (n_channels, repeats): the positions of each channel on `axis` of that tensor.
    `position` tells on which side of the non-linearity the tensor lies: `before` (output of a layer and its
    normalisation) or `after` (input of the next layer).

    `through` names a weight (n_out, n_in) and a bias or None, both state-dict keys: the channels are those of this
    linear map of the module's tensor, its axis `axis` brought last. Attention that projects by a function instead of
    a layer shows its heads in no other way.
    """

    module: str
    side: Side
    axis: int
    index: Tensor
    position: Position
    through: tuple[str, str | None] | None = None

    def __repr__(self) -> str:
        return f"Tap({self.side} of {self.module or 'the network'}, axis {self.axis}, {self.position})"
