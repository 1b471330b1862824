"""Where the channels of each parent stand in a wider network: side by side with the others' or in the same place."""

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
"""(key, axis) -> (length,) int64: the parent whose alone a position is; -1 where it is shared."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Places of the parents' channels in a wider network.

    Attributes
    ----------
    room
        The new channels.
    sources
        Per parent, (key, axis) -> (new length,) int64: which of its positions stands where, -1 where none does.
    owners
        Whose alone the positions are.
    """

    room: Widened
    sources: tuple[Mapping[Axis, Tensor], ...]
    owners: Owners

    @classmethod
    def create(
        cls,
        groups: ChannelGroups,
        hosts: Mapping[str, str],
        kept: Mapping[str, Tensor],
        parents: int,
        state: Mapping[str, Tensor],
    ) -> Arrangement:
        """Leave the kept channels of parent 0 where they stand, and bring those of the others to new places.

        Parameters
        ----------
        groups
            Of the parents.
        hosts
            Group -> the group whose room its new channels take.
        kept
            Group -> its channels (k,) int64 that are kept side by side.
        state
            Of a network with these groups.
        """
        counts: dict[str, int] = {}
        begins: dict[str, int] = {}
        for name, pairs in kept.items():
            begins[name] = counts.get(hosts[name], 0)
            counts[hosts[name]] = begins[name] + len(pairs) * (parents - 1)
        room = make_room(groups, counts, state)
        owners = {axis: torch.full((len(source),), -1) for axis, source in room.source.items()}
        sources = [dict(room.source) for _ in range(parents)]
        for name, pairs in kept.items():
            _move(groups[name], groups[hosts[name]], pairs, begins[name], room, sources, owners)
        return cls(room, tuple(sources), owners)

    def widen(self, model: nn.Module, parent: int | None = None) -> nn.Module:
        """Copy of a network with its channels in a parent's places, in all old places where None; silent elsewhere.

        Layers that the sources do not fit, a head of other labels, stay as they are.
        """
        sources = self.room.source if parent is None else self.sources[parent]
        network = evaluation_copy(model)
        resize(network, self.room.shapes(model.state_dict()))
        return _fill(network, spread(model, sources))

    def owned(self, key: str) -> bool:
        """Whether every position along some axis of a tensor belongs to one parent alone: nothing in it is averaged."""
        return any(bool((owner >= 0).all()) for (name, _), owner in self.owners.items() if name == key)


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy of a network in eval mode with other values in its tensors."""
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
    """Leave pairs (k,) of a group to parent 0 where they stand, and bring the others' to new channels of its host."""
    for slot in group.slots:
        axis = slot.key, slot.axis
        stand = room.moved[axis][slot.index[pairs]]
        places = [number for number, other in enumerate(host.slots) if (other.key, other.axis) == axis]
        number = host.slots.index(slot) if group is host else places[0]
        new = room.places[host.name, number][begin:].reshape(-1, stand.shape[1])
        if slot.role != "consumes":
            owners[axis][stand] = 0
        for parent in range(1, len(sources)):
            own = sources[parent][axis] = sources[parent][axis].clone()
            goes = new[(parent - 1) * len(pairs) : parent * len(pairs)]
            own[goes], own[stand] = slot.index[pairs], -1
            if slot.role != "consumes":
                owners[axis][goes] = parent
