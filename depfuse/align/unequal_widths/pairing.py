"""Pairing of channel groups of two networks of the same architecture and unequal widths."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from depfuse.errors import RecipeError
from depfuse.groups.channel_group import ChannelGroup, ChannelGroups
from depfuse.groups.reasons import TOUCHES_OUTPUT


def pair_groups(target: ChannelGroups, source: ChannelGroups) -> ChannelGroups:
    """Give the source's groups the names and the order of the target's.

    Groups correspond when their slots are on the same axes of the same tensors with the same roles, whatever the
    number of channels. A group that is fixed in one of the networks is fixed in both.

    Raises
    ------
    RecipeError
        A group of one network has no counterpart in the other, its channels have another number of places, or
        blocks (of a grouped convolution, attention heads, a GroupNorm) differ in number or size.
    """
    waiting: dict[Hashable, list[ChannelGroup]] = {}
    for group in source:
        waiting.setdefault(_signature(group), []).append(group)
    pairs = []
    for group in target:
        alike = waiting.get(_signature(group))
        if not alike:
            raise RecipeError(
                f"the channel group {group.name} has no counterpart in the parent of another width: its channels are "
                "coupled in another way there"
            )
        pairs.append((group, alike.pop(0)))
    if left := [group.name for groups in waiting.values() for group in groups]:
        raise RecipeError(f"the channel group {left[0]} has no counterpart in the network of the child's width")
    blocks = {group.inside[0] for groups in (target, source) for group in groups if group.inside is not None}
    for group, other in pairs:
        nested = group.inside is not None or {group.name, other.name} & blocks
        if nested and group.size != other.size and group.fixed is None:
            raise RecipeError(
                f"the blocks of {group.name} cannot be brought to another width ({other.size} and {group.size}): "
                "groups of a convolution or a normalisation and attention heads must be equal in number and size"
            )
        if group.size != other.size and TOUCHES_OUTPUT in (group.fixed, other.fixed):
            raise RecipeError(
                f"the networks' outputs differ in number ({other.size} and {group.size}): say which labels the outputs "
                "of each parent stand for, with `labels`"
            )
        if group.size != other.size and (group.fixed or other.fixed):
            raise RecipeError(
                f"the channels of {group.name} cannot be brought to another width ({other.size} and {group.size}): "
                f"{group.fixed or other.fixed}"
            )
    places = {other.name: group.name for group, other in pairs}
    return replace(
        source,
        groups=tuple(
            replace(
                other,
                name=group.name,
                fixed=group.fixed or other.fixed,
                inside=None if other.inside is None else (places[other.inside[0]], other.inside[1]),
            )
            for group, other in pairs
        ),
    )


def _signature(group: ChannelGroup) -> Hashable:
    return frozenset((slot.key, slot.axis, slot.role) for slot in group.slots)
