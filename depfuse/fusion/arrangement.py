"""Arrange the channels of the parents in a wider network, in the same places or side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.groups import ChannelGroup, ChannelGroups
from depfuse.groups.widening import Axis, Widened, make_room, spread
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.resizing import resize

Owners = Mapping[Axis, Tensor]
"""(key, axis) -> (length,) int64: the parent that alone has a position; -1 where all share it."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Places of the parents' channels in a wider network.

    Attributes
    ----------
    room
        The new channels.
    sources
        Per parent, (key, axis) -> (new length,) int64: its position at each new one, -1 where it has none.
    owners
        The parent that alone has each position.
    """

    room: Widened
    sources: tuple[Mapping[Axis, Tensor], ...]
    owners: Owners

    @classmethod
    def create(
        cls,
        groups: ChannelGroups,
        hosts: Mapping[str, str],
        counts_by_group: Mapping[str, Tensor],
        parents: int,
        state: Mapping[str, Tensor],
    ) -> Arrangement:
        """Leave the unmerged channels of parent 0 in place, and move those of the others to new places.

        Parameters
        ----------
        groups
            Of the parents.
        hosts
            Group -> the group that its new channels are added to.
        counts_by_group
            Group -> its channels (k,) int64 that stay unmerged.
        state
            Of a network with these groups.
        """
        counts: dict[str, int] = {}
        begins: dict[str, int] = {}
        for name, pairs in counts_by_group.items():
            begins[name] = counts.get(hosts[name], 0)
            counts[hosts[name]] = begins[name] + len(pairs) * (parents - 1)
        room = make_room(groups, counts, state)
        owners = {axis: torch.full((len(source),), -1) for axis, source in room.source.items()}
        sources = [dict(room.source) for _ in range(parents)]
        for name, pairs in counts_by_group.items():
            _move(groups[name], groups[hosts[name]], pairs, begins[name], room, sources, owners)
        return cls(room, tuple(sources), owners)

    def widen(self, model: nn.Module, parent: int | None = None) -> nn.Module:
        """Copy a network with its channels in a parent's places, in all old places where None, and zeros elsewhere.

        Layers of other shapes than the sources, as a head of other labels, stay as they are.
        """
        sources = self.room.source if parent is None else self.sources[parent]
        network = evaluation_copy(model)
        resize(network, self.room.shapes(model.state_dict()))
        return _fill(network, spread(model, sources))

    def owned(self, key: str) -> bool:
        """Tell whether every position along some axis of a tensor is one parent's alone: nothing in it is averaged."""
        return any(bool((owner >= 0).all()) for (name, _), owner in self.owners.items() if name == key)


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy a network in eval mode, with other values in its tensors."""
    return _fill(evaluation_copy(model), state)


def _fill(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in network.state_dict().items():
            tensor.copy_(state[key])
    return network


def _move(
    group: ChannelGroup,
    host: ChannelGroup,
    pairs: Tensor,
    begin: int,
    room: Widened,
    sources: Sequence[dict[Axis, Tensor]],
    owners: Mapping[Axis, Tensor],
) -> None:
    """Leave parent 0's channels (k,) of a group in place, and move the others' to new channels of its host."""
    for slot in group.slots:
        axis = slot.key, slot.axis
        old = room.moved[axis][slot.index[pairs]]
        places = [number for number, other in enumerate(host.slots) if (other.key, other.axis) == axis]
        number = host.slots.index(slot) if group is host else places[0]
        new = room.places[host.name, number][begin:].reshape(-1, old.shape[1])
        if slot.role != "consumes":
            owners[axis][old] = 0
        for parent in range(1, len(sources)):
            source = sources[parent][axis] = sources[parent][axis].clone()
            moved = new[(parent - 1) * len(pairs) : parent * len(pairs)]
            source[moved], source[old] = slot.index[pairs], -1
            if slot.role != "consumes":
                owners[axis][moved] = parent
