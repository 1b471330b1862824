"""Couplings between networks of unequal widths, applied to weights.

The smallest example is `Linear(3, 4), ReLU, Linear(4, 2)` resized to six hidden channels. A plan (6, 4) gives the
sources of each. Its rows, scaled to sum to one, make the new rows of the first weight: means of the old ones. Its
columns, scaled to sum to one, divide the old columns of the second weight: the new channels together contribute to an
output as much as the old channel that they come from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from depfuse.align.coupling import Coupling, Couplings
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups, Slot
from depfuse.groups.slots import Role

State = Mapping[str, Tensor]


def shares(coupling: Coupling, role: Role) -> Tensor:
    """Compute the linear map of source to target channels in a tensor, (n_target, n_source), float64.

    Rows sum to one where the tensor produces or scales the channels, columns where it consumes them; rows and columns
    without mass are zero. (Singh & Jaggi 2020, section 3.)
    """
    plan = coupling.matrix.double()
    mass = plan.sum(0 if role == "consumes" else 1, keepdim=True)
    return torch.where(mass > 0, plan / mass.clamp_min(1e-300), 0.0)


def resize_state(
    target: ChannelGroups,
    source: ChannelGroups,
    couplings: Couplings,
    state: State,
    shapes: Mapping[str, Sequence[int]],
    unmatched: Collection[str] = (),
) -> dict[str, Tensor]:
    """Bring a source's state dict to the number and order of the target's channels.

    Parameters
    ----------
    target, source
        Groups of both, paired by name (`pair_groups`).
    couplings
        Group name -> coupling; the channels of a group without one stay as they are.
    state
        The source's.
    shapes
        State-dict key -> shape of the target's tensor.
    unmatched
        Names of groups that have no coupling yet: their axes stay as they are.

    Raises
    ------
    RecipeError
        Positions of an axis that no group carries are not equally many in both.
    """
    left = {(slot.key, slot.axis) for name in unmatched for slot in target[name].slots}
    carried: dict[tuple[str, int], list[tuple[Slot, Slot, Coupling]]] = {}
    for group in target.free:
        if group.name in couplings:
            waiting = {(slot.key, slot.axis, slot.role): [] for slot in group.slots}  # type: ignore[var-annotated]
            for slot in source[group.name].slots:
                waiting[slot.key, slot.axis, slot.role].append(slot)
            for slot in group.slots:
                other = waiting[slot.key, slot.axis, slot.role].pop(0)
                carried.setdefault((slot.key, slot.axis), []).append((slot, other, couplings[group.name]))
    result = dict(state)
    for (key, axis), entries in carried.items():
        if (key, axis) in left:
            continue
        result[key] = _along(result[key], key, axis, shapes[key][axis], entries)
    return result


def _along(tensor: Tensor, key: str, axis: int, size: int, entries: Sequence[tuple[Slot, Slot, Coupling]]) -> Tensor:
    """Bring one axis to its new size."""
    if not tensor.is_floating_point():
        return tensor
    old = tensor.movedim(axis, 0).double()
    new = old.new_zeros(size, *old.shape[1:])
    rest = [torch.ones(count, dtype=torch.bool) for count in (size, len(old))]
    for slot, other, coupling in entries:
        indices = [side.index.to(old.device) for side in (slot, other)]
        weights = shares(coupling, slot.role).to(old.device)
        read = old[indices[1].reshape(-1)].reshape(len(indices[1]), -1)
        new[indices[0].reshape(-1)] = (weights @ read).reshape(indices[0].numel(), *old.shape[1:])
        for free, side in zip(rest, (slot, other), strict=True):
            free[side.index] = False
    remaining = [torch.nonzero(free)[:, 0].to(old.device) for free in rest]
    if len(remaining[0]) != len(remaining[1]):
        raise RecipeError(
            f"{key} cannot be brought to another width: {len(remaining[1])} and {len(remaining[0])} positions of its "
            f"axis {axis} belong to no channel group"
        )
    new[remaining[0]] = old[remaining[1]]
    return new.to(tensor.dtype).movedim(0, axis).contiguous()
