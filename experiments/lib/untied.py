"""Layers one by one: channel groups taken apart, so that every layer has a permutation of its own.

depfuse ties all layers that write to one residual stream: one permutation serves them. Where layers are matched one by
one and skip connections are left out of account (Singh & Jaggi 2020 without the handling of skips), every layer's
outputs have a permutation of their own, and its inputs follow the layer that comes before it in the main path. Without
skip connections both are the same; with them the network's function is lost, which is what the comparison is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.errors import GroupError
from depfuse.groups import ChannelGroup, ChannelGroups, Slot, Tap

SHORTCUTS = ("shortcut", "downsample")  # what layers beside the main path are called


@dataclass
class _Layer:
    """What goes with one layer's outputs: index tables (channels, repeats), by slot or tap."""

    size: int
    slots: dict[Slot, Tensor] = field(default_factory=dict)
    taps: dict[Tap, Tensor] = field(default_factory=dict)


def untied(groups: ChannelGroups, network: nn.Module, *, streams: bool = False) -> ChannelGroups:
    """One group for each layer instead of one for all that share a residual stream.

    Parameters
    ----------
    groups
        The channel groups of the network.
    network
        A network whose state dict names its layers in the order of the main path, such as depfuse's and torchvision's
        ResNets.
    streams
        Watch a layer that ends a block where the block ends, skip connection added; else at its own output.

    Raises
    ------
    GroupError
        A layer has outputs that lie in no free group, or are blocks.
    """
    state = network.state_dict()
    place = {key: number for number, key in enumerate(state)}
    layers: dict[str, _Layer] = {}
    for group in groups.free:
        producers = sorted((slot for slot in group.slots if slot.role == "produces"), key=lambda slot: place[slot.key])
        main = [slot for slot in producers if not _beside(slot.key)]
        rows = {slot.key: slot.index[:, 0] for slot in producers}
        if any(slot.within is not None or slot.index.shape[1] > 1 for slot in producers):
            raise GroupError(f"{group.name} has blocks of channels: layers cannot be taken one by one")
        for slot in group.slots:
            own = main if slot.role == "consumes" else producers
            key = [layer.key for layer in own if place[layer.key] <= place[slot.key]][-1]
            layer = layers.setdefault(key, _Layer(state[key].shape[0]))
            _enter(layer.slots, slot, rows[key], layer.size)
        for key, tap in _watched(group, producers, main, state, streams):
            _enter(layers[key].taps, tap, rows[key], layers[key].size)
    apart = [_group(key, layers[key]) for key in sorted(layers, key=lambda key: place[key])]
    # Declared as proved, so that `fuse` takes them: that they are not is what the comparison is about.
    return replace(groups, groups=tuple(apart), proof_error=0.0)


def only(groups: ChannelGroups, *, streams: bool) -> ChannelGroups:
    """The groups that lie on a residual stream, or those that do not; all others are left as they stand."""
    kept = [group for group in groups.free if (sum(slot.role == "produces" for slot in group.slots) > 1) == streams]
    return replace(groups, groups=tuple(kept))


def groups_of(whole: ChannelGroups, network: nn.Module, tied: str) -> ChannelGroups:
    """Choose what is permuted, and what of it together.

    `groups` as they are; `layers` and `streams` one by one, see `untied`; `inside` the blocks, or `on streams`, only;
    `nothing`.
    """
    if tied in ("layers", "streams"):
        return untied(whole, network, streams=tied == "streams")
    if tied == "nothing":
        return replace(whole, groups=())
    return whole if tied == "groups" else only(whole, streams=tied == "on streams")


def _beside(key: str) -> bool:
    return any(part in SHORTCUTS for part in key.split("."))


def _watched(
    group: ChannelGroup, producers: Sequence[Slot], main: Sequence[Slot], state: Mapping[str, Tensor], streams: bool
) -> list[tuple[str, Tap]]:
    """The taps of a group, each with the layer whose outputs it is to watch."""
    keys, found = list(state), []
    of_norm = {}
    for slot in producers:
        after = [key for key in keys[keys.index(slot.key) :] if key.endswith("running_var")]
        of_norm[after[0].rpartition(".")[0] if after else ""] = slot.key
        of_norm[slot.key.rpartition(".")[0]] = slot.key
    latest = main[0].key
    for tap in group.taps:
        own = of_norm.get(tap.module) if tap.side == "output" else None
        if own is not None:
            found.append((own, tap))
            latest = latest if _beside(own) else own
        elif streams or len(producers) == 1:
            found.append((latest, tap))
    return found


def _enter(table: dict[Any, Tensor], part: Slot | Tap, rows: Tensor, size: int) -> None:
    """Add the part of a slot or tap that one group holds to the whole of the layer's."""
    same = next((entry for entry in table if _where(entry) == _where(part)), part)
    whole = table.setdefault(same, torch.full((size, part.index.shape[1]), -1, dtype=torch.int64))
    whole[rows] = part.index


def _where(entry: Slot | Tap) -> tuple[object, ...]:
    if isinstance(entry, Slot):
        return entry.key, entry.axis, entry.role
    return entry.module, entry.side, entry.axis, entry.position


def _group(key: str, layer: _Layer) -> ChannelGroup:
    if any(bool((index < 0).any()) for index in (*layer.slots.values(), *layer.taps.values())):
        raise GroupError(f"some outputs of {key} lie in no free group: layers cannot be taken one by one")
    slots = tuple(replace(slot, index=index) for slot, index in layer.slots.items())
    taps = tuple(replace(tap, index=index) for tap, index in layer.taps.items())
    return ChannelGroup(key.rpartition(".")[0], layer.size, slots, taps)
