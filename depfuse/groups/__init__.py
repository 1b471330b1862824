"""Channel groups: channels that may be permuted, found by DepGraph and proved."""

from depfuse.groups.channel_group import ChannelGroup, ChannelGroups, random_permutations
from depfuse.groups.find import find_groups
from depfuse.groups.proof import TOLERANCE, Extent, prove_groups
from depfuse.groups.reasons import explain, not_followed
from depfuse.groups.slots import Slot, Tap

__all__ = [
    "TOLERANCE",
    "ChannelGroup",
    "ChannelGroups",
    "Extent",
    "Slot",
    "Tap",
    "explain",
    "find_groups",
    "not_followed",
    "prove_groups",
    "random_permutations",
]
