from .errors import DepfuseError, DepfuseWarning
from .fusion.ask import ask
from .fusion.comparison import Comparison, compare, naive_average
from .fusion.parents import Parents
from .fusion.pipeline import fuse
from .fusion.result import FusionResult
from .groups import ChannelGroup, ChannelGroups, Slot, Tap, find_groups, prove_groups
from .io.load import load
from .recipe import Recipe

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "Comparison",
    "DepfuseError",
    "DepfuseWarning",
    "FusionResult",
    "Parents",
    "Recipe",
    "Slot",
    "Tap",
    "__version__",
    "ask",
    "compare",
    "find_groups",
    "fuse",
    "load",
    "naive_average",
    "prove_groups",
]

__version__: str
