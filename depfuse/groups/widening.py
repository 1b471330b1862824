"""Room for more channels: where new channels of a group go, and whether the network runs with them.

A channel that nothing feeds and nothing reads changes no function. Whether a network can have one is found out by
giving it one: layers whose number of channels is written into the network's code (a padded shortcut, a reshape) fail,
and so do norms over all channels.

Where a group has no room by itself, another one may have it in all the same tensors. Channels of a stream that begin at
a padded shortcut, say, find it among those that run through the stream from the start, and are zero until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.groups.channel_group import ChannelGroup, ChannelGroups, Slot
from depfuse.groups.depgraph import evaluation_copy
from depfuse.resizing import resize
from depfuse.running import evaluating

TOLERANCE = 1e-9
Axis = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Widened:
    """Tensor axes with room for new channels.

    Attributes
    ----------
    source
        (key, axis) -> (new length,) int64: the old position that comes to each new one, -1 at a new channel.
    places
        (group, number of the slot in it) -> (new channels, repeats) int64: their new positions.
    moved
        (key, axis) -> (old length,) int64: where each old position has gone.
    """

    source: Mapping[Axis, Tensor]
    places: Mapping[tuple[str, int], Tensor]
    moved: Mapping[Axis, Tensor]

    def shapes(self, state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """The shapes of a network's tensors with this room."""
        shapes = {key: list(tensor.shape) for key, tensor in state.items()}
        for (key, axis), source in self.source.items():
            shapes[key][axis] += len(source) - len(self.moved[key, axis])
        return {key: torch.Size(shape) for key, shape in shapes.items()}


def make_room(groups: ChannelGroups, counts: Mapping[str, int], state: Mapping[str, Tensor]) -> Widened:
    """Room for `counts` (group name -> new channels), after the last channel of each group on every axis.

    `state` is that of a network with these groups.
    """
    inserts: dict[Axis, list[tuple[int, int, str, int, int]]] = {}
    for group in groups:
        for number, slot in enumerate(group.slots):
            for point, size in _ends(slot) if counts.get(group.name) else ():
                found = inserts.setdefault((slot.key, slot.axis), [])
                found.append((point, size * counts[group.name], group.name, number, size))
    source: dict[Axis, Tensor] = {}
    moved: dict[Axis, Tensor] = {}
    columns: dict[tuple[str, int], list[Tensor]] = {}
    for axis, found in inserts.items():
        length = state[axis[0]].shape[axis[1]]
        parts, begin, added = [], 0, 0
        shift = torch.zeros(length, dtype=torch.int64)
        for point, size, name, number, each in sorted(found):
            parts += [torch.arange(begin, point), torch.full((size,), -1)]
            columns.setdefault((name, number), []).append((torch.arange(size) + point + added).reshape(-1, each))
            begin, added = point, added + size
            shift[point:] += size
        source[axis] = torch.cat([*parts, torch.arange(begin, length)])
        moved[axis] = torch.arange(length) + shift
    return Widened(source, {place: torch.cat(parts, 1) for place, parts in columns.items()}, moved)


def hosts(model: nn.Module, groups: ChannelGroups, example: Tensor) -> dict[str, str]:
    """Group -> the group whose room its new channels take: itself where it has room. Groups without any are left out.

    Proved by running the network with one more channel in each group, in float64 on the CPU.
    """
    candidates = [group for group in groups.free if _is_simple(group, groups)]
    fits = _Fits(model, groups, example)
    roomy = _largest([group for group in candidates if all(map(_ends, group.slots))], fits)
    roomy = roomy if fits(roomy) else []
    found = {group.name: group.name for group in roomy}
    for group in candidates:
        if group.name in found:
            continue
        axes = {(slot.key, slot.axis) for slot in group.slots}
        around = [host for host in roomy if axes <= {(slot.key, slot.axis) for slot in host.slots}]
        if around:
            found[group.name] = min(around, key=lambda host: len(host.slots)).name
    return found


class _Fits:
    """Whether a network keeps its function with one more channel in some groups."""

    def __init__(self, model: nn.Module, groups: ChannelGroups, example: Tensor) -> None:
        self.model = evaluation_copy(model).cpu().double()
        self.groups, self.example = groups, example.detach().cpu().double()
        self.expected = self._outputs(self.model)

    def __call__(self, chosen: Sequence[ChannelGroup]) -> bool:
        state = self.model.state_dict()
        room = make_room(self.groups, {group.name: 1 for group in chosen}, state)
        wider = evaluation_copy(self.model)
        try:
            resize(wider, room.shapes(state))
            with torch.no_grad():
                for key, tensor in wider.state_dict().items():
                    tensor.copy_(spread(key, state[key], room.source))
            outputs = self._outputs(wider)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
            return False  # the network's code says how many channels there are
        if outputs.shape != self.expected.shape:
            return False
        return float((outputs - self.expected).abs().max()) <= TOLERANCE * float(self.expected.abs().max())

    def _outputs(self, model: nn.Module) -> Tensor:
        with torch.no_grad(), evaluating(model):
            return model(self.example)  # type: ignore[no-any-return]


def _largest(groups: Sequence[ChannelGroup], fits: _Fits) -> list[ChannelGroup]:
    """The groups that have room, by halving what has none."""
    if not groups or fits(groups):
        return list(groups)
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return _largest(groups[:middle], fits) + _largest(groups[middle:], fits)


def spread(key: str, tensor: Tensor, sources: Mapping[Axis, Tensor]) -> Tensor:
    """A tensor with its old positions at their new places, and at new ones what makes a channel silent.

    `sources` are (key, axis) -> (new length,) int64: an old position, or -1.
    """
    for axis in range(tensor.dim()):
        source = sources.get((key, axis))
        if source is not None:
            new = source.to(tensor.device)
            tensor = tensor.index_select(axis, new.clamp_min(0))
            tensor.movedim(axis, 0)[new < 0] = 1.0 if key.endswith("running_var") else 0.0
    return tensor


def _is_simple(group: ChannelGroup, groups: ChannelGroups) -> bool:
    """Whether a group lies in no blocks and has none."""
    around = {other.inside[0] for other in groups if other.inside is not None}
    if group.inside is not None or group.name in around:
        return False
    return all(slot.within is None for slot in group.slots)


def _ends(slot: Slot) -> list[tuple[int, int]]:
    """(position, positions per channel) of each place after which new channels go; none where there is no order."""
    index = slot.index
    size, repeats = index.shape
    if torch.equal(index.reshape(-1), torch.arange(index.numel()) + index[0, 0]):
        return [(int(index[-1, -1]) + 1, repeats)]
    if torch.equal(index - index[:1], torch.arange(size)[:, None].expand_as(index)):
        return [(int(last) + 1, 1) for last in index[-1]]
    return []
