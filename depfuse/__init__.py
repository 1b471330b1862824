"""depfuse: fuse independently trained networks into one.

Torch-Pruning's DepGraph finds the coupled channel groups of a network, each group is aligned jointly, the
networks are averaged, and the child's BatchNorm statistics are recomputed.
"""

from depfuse.errors import DepfuseError, DepfuseWarning
from depfuse.fuse import FusionResult, fuse, naive_average
from depfuse.groups import ChannelGroup, ChannelGroups, Slot, Tap, find_groups, prove_groups
from depfuse.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "DepfuseError",
    "DepfuseWarning",
    "FusionResult",
    "Recipe",
    "Slot",
    "Tap",
    "find_groups",
    "fuse",
    "naive_average",
    "prove_groups",
]
