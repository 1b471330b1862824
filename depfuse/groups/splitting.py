"""Parts of a group that failed its proof: channels that may be exchanged with one another, found by experiment.

Where channels are cut out by their position and written back, some of a group go another way than the rest, though they
lie in the same tensors. What may be exchanged is an equivalence of channels, so that a few permutations show its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from depfuse.groups.channel_group import ChannelGroup, ChannelGroups
from depfuse.groups.reasons import PARTS

Holds = Callable[[Tensor], bool]  # a permutation of the group's channels -> whether the function is kept


def is_simple(group: ChannelGroup, groups: ChannelGroups) -> bool:
    """Tell whether a group lies in no block, and has none."""
    return group.inside is None and all(other.inside is None or other.inside[0] != group.name for other in groups)


def find_parts(size: int, holds: Holds) -> list[list[int]]:
    """Find the sets of channels that may be permuted, of a group of `size` channels, by halving."""
    pieces: list[list[int]] = []
    stack = [list(range(size))]
    while stack:
        piece = stack.pop()
        if len(piece) == 1 or (len(piece) < size and holds(_rolled(size, piece))):
            pieces.append(piece)
        else:
            stack += [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
    parts: list[list[int]] = []
    for piece in pieces:
        alike = next((part for part in parts if holds(_exchanged(size, part[0], piece[0]))), None)
        if alike is None:
            parts.append(piece)
        else:
            alike.extend(piece)
    return parts


def split(groups: ChannelGroups, parts_of: dict[str, list[list[int]]]) -> ChannelGroups:
    """Replace groups by their parts; what is single in a part is fixed."""
    found: list[ChannelGroup] = []
    for group in groups:
        parts = parts_of.get(group.name)
        found += [group] if parts is None else _parts(group, parts)
    return replace(groups, groups=tuple(found))


def _parts(group: ChannelGroup, parts: Sequence[Sequence[int]]) -> list[ChannelGroup]:
    moving = [sorted(part) for part in parts if len(part) > 1]
    rest = sorted(channel for part in parts if len(part) == 1 for channel in part)
    made = []
    for number, channels in enumerate([*moving, rest] if rest else moving, start=1):
        chosen = torch.tensor(channels)
        made.append(
            replace(
                group,
                name=f"{group.name}#{number}",
                size=len(channels),
                slots=tuple(replace(slot, index=slot.index[chosen]) for slot in group.slots),
                taps=tuple(replace(tap, index=tap.index[chosen]) for tap in group.taps),
                fixed=PARTS if channels is rest else None,
            )
        )
    return made


def _rolled(size: int, piece: Sequence[int]) -> Tensor:
    order = torch.arange(size)
    order[torch.tensor(piece)] = torch.tensor(piece).roll(1)
    return order


def _exchanged(size: int, first: int, second: int) -> Tensor:
    order = torch.arange(size)
    order[first], order[second] = second, first
    return order
