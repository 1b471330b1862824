"""Reasons why channels are fixed: because they must be, or because they could not be followed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from depfuse.groups.channel_group import ChannelGroups

TOUCHES_INPUT = "touches the network's input"
TOUCHES_OUTPUT = "touches the network's output"
NOT_USED = "not used in the forward pass"
SINGLE = "a single channel"
KERNEL = "positions of a convolution's kernel"
PIXELS = "positions in space"
PAIRS = "multiplied with one another, channel by channel"
CONSTANT = "tied to a constant"
PARTS = "parts that are not interchangeable"
OVERLAP = "blocks that have channels in common"
CHOSEN = "chosen by an index"
CROSSING = "blocks that cross other blocks"
MULTIPLIES_ZEROS = "multiplies channels that are always zero"
HIDDEN = "used, but not seen in the trace (no_grad, detach, .data, a reentrant checkpoint or another branch)"
OVERWRITTEN = "not proved: the forward pass itself writes {}"

# What no permutation could move, or what nothing is gained by moving.
EXPECTED = frozenset(
    {TOUCHES_INPUT, TOUCHES_OUTPUT, CONSTANT, SINGLE, NOT_USED, KERNEL, PIXELS, MULTIPLIES_ZEROS, PARTS, OVERLAP}
    | {CROSSING, CHOSEN}
)
MOST_COVERED = 0.9  # of the parameters: below it, what stays in its place is said
SEPARATOR = "; "  # between the reasons of a tensor that has several


def unexpected(reason: str, expected: Collection[str] = EXPECTED) -> str:
    """Return the parts of a reason that are not expected; empty where all are."""
    return SEPARATOR.join(part for part in reason.split(SEPARATOR) if part not in expected)


def not_followed(groups: ChannelGroups, expected: Collection[str] = EXPECTED) -> dict[str, str]:
    """Collect what is fixed because it could not be followed or proved, or for another unexpected reason.

    Returns
    -------
    dict
        Group or state-dict key -> reason. A tensor is left out where a fixed group says the same already.
    """
    reasons = {name: why for name, reason in groups.fixed.items() if (why := unexpected(reason, expected))}
    reasons_given = set(reasons.values())
    for key, reason in groups.fixed_tensors.items():
        if (why := unexpected(reason, expected)) and not reasons_given.issuperset(why.split(SEPARATOR)):
            reasons.setdefault(key, why)
    return reasons


def by_reason(places: Mapping[str, str]) -> dict[str, list[str]]:
    """Group places by reason, in their order."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for place, reason in places.items():
        grouped[reason].append(place)
    return dict(grouped)


def named(places: Sequence[str], most: int = 3) -> str:
    """Say `a, b, c and 4 more`."""
    shown = list(places[:most])
    rest = len(places) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def explain(wrong: Mapping[str, str], most: int = 3) -> str:
    """Write the places and reasons of `not_followed` in one sentence, with long lists cut short."""
    reasons = by_reason(wrong)
    parts = [f"{named(places)} ({reason})" for reason, places in reasons.items()]
    return _joined(parts[:most], len(parts) - most)


def _joined(parts: Iterable[str], left: int) -> str:
    return "; ".join(parts) + (f"; and {left} more reasons" if left > 0 else "")


def left_in_place(groups: ChannelGroups, most: int = 3) -> str:
    """Write which share of the parameters no free group moves, where and why; empty where it is less than a tenth."""
    if groups.covered_share >= MOST_COVERED or not groups.parameters:
        return ""
    of_group = {slot.key: reason for group in groups for slot in group.slots if (reason := group.fixed) is not None}
    entries = groups.uncovered_entries()
    places = by_reason({key: groups.fixed_tensors.get(key, of_group.get(key, SINGLE)) for key in entries})
    total = sum(math.prod(shape) for shape in groups.parameters.values())
    shares = {reason: sum(entries[key] for key in keys) / total for reason, keys in places.items()}
    largest = sorted(places, key=lambda reason: -shares[reason])
    parts = [f"{shares[why]:.0%} {why} ({named(sorted(places[why], key=lambda k: -entries[k]))})" for why in largest]
    return f"{sum(shares.values()):.0%} of the parameters stay in place: {_joined(parts[:most], len(parts) - most)}"
