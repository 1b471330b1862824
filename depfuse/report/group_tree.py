"""Channel groups as a tree that a person can read, and in one line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text
from rich.tree import Tree
from torch import Tensor

from depfuse.groups import ChannelGroup, ChannelGroups, Slot, explain, not_followed
from depfuse.groups.reasons import by_reason, left_in_place, named, unexpected
from depfuse.text import counted

Detail = Literal["brief", "usual", "full"]
ROLES = ("produces", "scales", "consumes")
# Lines per role, and names per list, that are shown before the rest is counted.
_LINES = {"brief": 0, "usual": 4, "full": None}
_NAMES = {"brief": 4, "usual": 8, "full": None}
_NUMBER = re.compile(r"#\d+")


@dataclass(frozen=True)
class _Alike:
    """Groups with the same members but channels of their own: the blocks of a grouped convolution."""

    groups: tuple[ChannelGroup, ...]

    def title(self, remark: str) -> Text:
        first, last = self.groups[0], self.groups[-1]
        if len(self.groups) == 1:
            return Text.assemble((first.name, "bold"), f": {counted(first.size, 'channel')}{remark}")
        names = f"{first.name} to {last.name.rpartition('#')[2]}"
        sizes = f"{len(self.groups)} groups of {counted(first.size, 'channel')} each"
        return Text.assemble((names, "bold"), f": {sizes}{remark or ', the first of them:'}")


def group_tree(
    title: str, groups: ChannelGroups, shapes: Mapping[str, Sequence[int]], detail: Detail = "usual"
) -> Tree:
    """Draw the groups as a tree: members of every free group by role, its taps, and what is fixed, by reason.

    Parameters
    ----------
    title
        Name of the network.
    groups
        Its groups.
    shapes
        State-dict key -> shape of the tensor: members that cover a part of an axis are shown with their positions.
    detail
        `brief` counts a group's members, `full` cuts no list short.
    """
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    for alike in _gathered(groups.free):
        example = alike.groups[0]
        branch = tree.add(alike.title(f" ({_members_counted(example)})" if detail == "brief" else ""))
        if detail == "brief":
            continue
        for role in ROLES:
            slots = [slot for slot in example.slots if slot.role == role]
            lines = list(_member_lines(slots, shapes))
            if lines:
                branch.add(_listed(role, lines, _LINES[detail]))
        if example.taps:
            taps = [f"{tap.module or 'the network'} {tap.side} ({tap.position})" for tap in example.taps]
            branch.add(_listed("taps", taps, _LINES[detail]))
        else:
            branch.add(Text("no taps"))
    _add_fixed(tree, groups, detail)
    return tree


def summary_line(groups: ChannelGroups) -> str:
    """Summarise groups in a line: their channels, share of the parameters, proof, what stays and is not followed."""
    proof = "not proved" if groups.proof_error is None else f"proved, relative error {groups.proof_error:.1e}"
    line = (
        f"{counted(groups.count, 'free group')}, {counted(groups.free_channels, 'channel')}, "
        f"{100 * groups.covered_share:.1f}% of the parameters; {proof}"
    )
    left, wrong = left_in_place(groups), not_followed(groups)
    line = f"{line}; {left}" if left else line
    return f"{line}; not followed: {explain(wrong)}" if wrong else line


def _gathered(groups: Sequence[ChannelGroup]) -> list[_Alike]:
    by_members: dict[object, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        members = tuple((slot.key, slot.axis, slot.role, slot.index.shape[1]) for slot in group.slots)
        by_members[_NUMBER.sub("", group.name), group.size, members].append(group)
    return [_Alike(tuple(alike)) for alike in by_members.values()]


def _member_lines(slots: Sequence[Slot], shapes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Write `layer.weight, .bias axis 0 [0:16] x 4`: a line for tensors of one module with the same positions."""
    by_module: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for slot in slots:
        module, _, name = slot.key.rpartition(".")
        names = by_module[module, _place(slot, shapes.get(slot.key))]
        names[name] = names.get(name, 0) + 1
    for (module, place), names in by_module.items():
        first, *others = names
        keys = ", ".join([f"{module}.{first}" if module else first, *(f".{name}" for name in others)])
        times = max(names.values())
        yield f"{keys} {place}" + (f", in {times} parts" if times > 1 else "")


def _place(slot: Slot, shape: Sequence[int] | None) -> str:
    text = f"axis {slot.axis}"
    if shape is not None and slot.index.numel() < shape[slot.axis]:
        text += f" {_positions(slot.index)}"
    if slot.index.shape[1] > 1:
        text += f" x {slot.index.shape[1]}"
    if slot.within is not None:
        text += f" of {counted(len(slot.within[1]), 'position')} of axis {slot.within[0]}"
    return text


def _positions(index: Tensor) -> str:
    """Write `[0:8, 40:48]`, or the number of positions where they are scattered."""
    ordered = index.reshape(-1).sort().values
    ends = (ordered.diff() != 1).nonzero().reshape(-1).tolist()
    starts = [0, *(end + 1 for end in ends)]
    if len(starts) > 3:
        return f"at {len(ordered)} positions"
    runs = zip(starts, [*ends, len(ordered) - 1], strict=True)
    return "[" + ", ".join(f"{int(ordered[start])}:{int(ordered[end]) + 1}" for start, end in runs) + "]"


def _members_counted(group: ChannelGroup) -> str:
    counts = [(sum(slot.role == role for slot in group.slots), role) for role in ROLES]
    parts = [f"{role} {count}" for count, role in counts if count]
    return ", ".join([*parts, counted(len(group.taps), "tap")])


def _listed(head: str, lines: Sequence[str], most: int | None) -> Text:
    """Write a head with its lines below one another."""
    shown = list(lines if most is None or len(lines) == most + 1 else lines[:most])
    if len(shown) < len(lines):
        shown.append(f"and {len(lines) - len(shown)} more")
    return Text.assemble((f"{head:8s} ", "italic"), f"\n{'':9s}".join(shown))


def _add_fixed(tree: Tree, groups: ChannelGroups, detail: Detail) -> None:
    sizes = {group.name: group.size for group in groups.groups}
    fixed_groups, fixed_tensors = by_reason(groups.fixed), by_reason(groups.fixed_tensors)
    reasons = sorted({**fixed_groups, **fixed_tensors}, key=lambda reason: not unexpected(reason))
    if not reasons:
        return
    branch = tree.add(Text("fixed", style="bold"))
    most = _NAMES[detail]
    for reason in reasons:
        below = branch.add(Text(reason, style="red" if unexpected(reason) else ""))
        names = [f"{name} ({counted(sizes[name], 'channel')})" for name in fixed_groups.get(reason, [])]
        for head, keys in (("groups", names), ("tensors", fixed_tensors.get(reason, []))):
            if keys:
                below.add(Text.assemble((f"{head:8s} ", "italic"), named(keys, most or len(keys))))
