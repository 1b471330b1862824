"""Room for more channels: the places of a group's new channels, and whether the network runs with them.

A channel without input and without readers changes no function. Whether a network can have one is tested by
adding it: layers whose number of channels is written into the network's code (a padded shortcut, a reshape) fail,
and so do norms over all channels.

Where a group has no room by itself, another one may have it in all the same tensors. Channels of a stream that begin at
a padded shortcut, say, find it among those that run through the stream from the start, and are zero until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.groups.channel_group import ChannelGroup, ChannelGroups
from depfuse.groups.mixing import UNFIT, Fault, compared, not_taken, outputs_of
from depfuse.groups.slots import Slot
from depfuse.networks.computed_weights import WEIGHT_NORM, computed_weights
from depfuse.networks.copying import evaluation_copy, fit_example
from depfuse.networks.forward import Example
from depfuse.networks.resizing import resize

BLOCKS = "channels in blocks: of a grouped convolution, attention heads, or groups of a norm"
NO_ORDER = "channels that stand in no order"
Axis = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Widened:
    """Tensor axes with room for new channels.

    Attributes
    ----------
    source
        (key, axis) -> (new length,) int64: the old position at each new one, -1 at a new channel.
    places
        (group, number of the slot in it) -> (new channels, repeats) int64: their new positions.
    moved
        (key, axis) -> (old length,) int64: the new place of each old position.
    """

    source: Mapping[Axis, Tensor]
    places: Mapping[tuple[str, int], Tensor]
    moved: Mapping[Axis, Tensor]

    def shapes(self, state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Compute the shapes of a network's tensors with this room."""
        shapes = {key: list(tensor.shape) for key, tensor in state.items()}
        for (key, axis), source in self.source.items():
            shapes[key][axis] += len(source) - len(self.moved[key, axis])
        return {key: torch.Size(shape) for key, shape in shapes.items()}


def make_room(groups: ChannelGroups, counts: Mapping[str, int], state: Mapping[str, Tensor]) -> Widened:
    """Make room for `counts` (group name -> new channels), after the last channel of each group on every axis.

    `state` is the state dict of a network with these groups.
    """
    inserts: dict[Axis, list[tuple[int, int, str, int, int, int]]] = {}
    for group in groups:
        for number, slot in enumerate(group.slots):
            for column, (point, size) in enumerate(_ends(slot) if counts.get(group.name) else ()):
                points = inserts.setdefault((slot.key, slot.axis), [])
                points.append((point, size * counts[group.name], group.name, number, column, size))
    source: dict[Axis, Tensor] = {}
    moved: dict[Axis, Tensor] = {}
    columns: dict[tuple[str, int], dict[int, Tensor]] = {}
    for axis, points in inserts.items():
        length = state[axis[0]].shape[axis[1]]
        parts, begin, added = [], 0, 0
        shift = torch.zeros(length, dtype=torch.int64)
        for point, size, name, number, column, each in sorted(points):
            parts += [torch.arange(begin, point), torch.full((size,), -1)]
            # A slot may hold a channel's later position first: its columns keep their order.
            columns.setdefault((name, number), {})[column] = (torch.arange(size) + point + added).reshape(-1, each)
            begin, added = point, added + size
            shift[point:] += size
        source[axis] = torch.cat([*parts, torch.arange(begin, length)])
        moved[axis] = torch.arange(length) + shift
    places = {
        place: torch.cat([positions for _, positions in sorted(each.items())], 1) for place, each in columns.items()
    }
    return Widened(source, places, moved)


def find_hosts(model: nn.Module, groups: ChannelGroups, example: Example) -> tuple[dict[str, str], dict[str, str]]:
    """Map each group to the group whose room its new channels take, itself where it has room; and give reasons if none.

    Proved by running the network with one more channel in each group, in float64 on the CPU.
    """
    candidates = [group for group in groups.free if _is_simple(group, groups)]
    why = {group.name: BLOCKS for group in groups.free}
    why |= {group.name: NO_ORDER for group in candidates}
    fits = _Fits(model, groups, example)
    ordered = {group.name: group for group in candidates if all(map(_ends, group.slots))}
    roomy = [ordered[name] for name in largest(list(ordered), lambda names: fits([ordered[name] for name in names]))]
    roomy = roomy if fits(roomy) else []
    why |= fits.why
    hosts = {group.name: group.name for group in roomy}
    for group in candidates:
        if group.name in hosts:
            continue
        axes = {(slot.key, slot.axis) for slot in group.slots}
        around = [host for host in roomy if axes <= {(slot.key, slot.axis) for slot in host.slots}]
        if around:
            hosts[group.name] = min(around, key=lambda host: len(host.slots)).name
    return hosts, {name: reason for name, reason in why.items() if name not in hosts}


class _Fits:
    """Test whether a network keeps its function with one more channel in some groups, with reasons for single ones."""

    def __init__(self, model: nn.Module, groups: ChannelGroups, example: Example) -> None:
        self.model = evaluation_copy(model).cpu().double()
        self.groups, self.example = groups, fit_example(example, self.model)
        self.expected = outputs_of(self.model, self.example)
        self.why: dict[str, str] = {}

    def __call__(self, chosen: Sequence[ChannelGroup]) -> bool:
        fault = self._fault(chosen)
        if fault is not None and len(chosen) == 1:
            self.why[chosen[0].name] = fault.words
        return fault is None

    def _fault(self, chosen: Sequence[ChannelGroup]) -> Fault | None:
        state = self.model.state_dict()
        room = make_room(self.groups, {group.name: 1 for group in chosen}, state)
        wider = evaluation_copy(self.model)
        try:
            resize(wider, room.shapes(state))
            with torch.no_grad():
                wide = spread(self.model, room.source)
                for key, tensor in wider.state_dict().items():
                    tensor.copy_(wide[key])
        except UNFIT as error:
            return not_taken(wider, error)
        return compared(wider, self.expected, self.example, self.model)


def largest(names: Sequence[str], fits: Callable[[Sequence[str]], bool]) -> list[str]:
    """Select the groups that fit, by halving the sets that do not."""
    if not names or fits(names):
        return list(names)
    if len(names) == 1:
        return []
    middle = len(names) // 2
    return largest(names[:middle], fits) + largest(names[middle:], fits)


def spread(model: nn.Module, sources: Mapping[Axis, Tensor]) -> dict[str, Tensor]:
    """Move old positions of a network's tensors to their new places, and fill new ones so that channels are silent.

    `sources` are (key, axis) -> (new length,) int64: an old position, or -1.
    """
    divisors = _divisors(model)
    spread_state = {}
    for key, tensor in model.state_dict().items():
        for axis in range(tensor.dim()):
            source = sources.get((key, axis))
            if source is not None:
                new = source.to(tensor.device)
                tensor = tensor.index_select(axis, new.clamp_min(0))
                tensor.movedim(axis, 0)[new < 0] = 1.0 if (key, axis) in divisors else 0.0
        spread_state[key] = tensor
    return spread_state


def _divisors(model: nn.Module) -> set[Axis]:
    """Find axes along which entries are divided by, and may not be zero: variances, and directions of weight norm."""
    state = model.state_dict()
    axes = {(key, 0) for key in state if key.endswith("running_var")}
    for norm, (_, direction) in computed_weights(model, WEIGHT_NORM):
        axes.add((direction, norm.dim % state[direction].dim()))
    return axes


def _is_simple(group: ChannelGroup, groups: ChannelGroups) -> bool:
    """Tell whether a group lies in no blocks and has none."""
    around = {other.inside[0] for other in groups if other.inside is not None}
    if group.inside is not None or group.name in around:
        return False
    return all(slot.within is None for slot in group.slots)


def _ends(slot: Slot) -> list[tuple[int, int]]:
    """List (position, positions per channel) of each place where new channels go; none where there is no order."""
    index = slot.index
    size, repeats = index.shape
    if torch.equal(index.reshape(-1), torch.arange(index.numel()) + index[0, 0]):
        return [(int(index[-1, -1]) + 1, repeats)]
    if torch.equal(index - index[:1], torch.arange(size)[:, None].expand_as(index)):
        return [(int(last) + 1, 1) for last in index[-1]]
    return []
