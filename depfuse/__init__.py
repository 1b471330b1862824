"""depfuse: fuse independently trained networks into one.

Torch-Pruning's DepGraph finds the coupled channel groups of a network, each group is aligned jointly, the
networks are averaged, and the child's BatchNorm statistics are recomputed.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depfuse.errors import DepfuseError, DepfuseWarning
    from depfuse.fusion.comparison import Comparison, compare, naive_average
    from depfuse.fusion.pipeline import fuse
    from depfuse.fusion.result import FusionResult
    from depfuse.groups import ChannelGroup, ChannelGroups, Slot, Tap, find_groups, prove_groups
    from depfuse.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "ChannelGroup",
    "ChannelGroups",
    "Comparison",
    "DepfuseError",
    "DepfuseWarning",
    "FusionResult",
    "Recipe",
    "Slot",
    "Tap",
    "compare",
    "find_groups",
    "fuse",
    "naive_average",
    "prove_groups",
]

_HOMES = {
    "depfuse.errors": ("DepfuseError", "DepfuseWarning"),
    "depfuse.fusion.comparison": ("Comparison", "compare", "naive_average"),
    "depfuse.fusion.pipeline": ("fuse",),
    "depfuse.fusion.result": ("FusionResult",),
    "depfuse.groups": ("ChannelGroup", "ChannelGroups", "Slot", "Tap", "find_groups", "prove_groups"),
    "depfuse.recipe.recipe": ("Recipe",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `depfuse --help` should not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """The package, in which `fuse` is the function, though the module `depfuse.fusion.pipeline` has the same name."""

    @property
    def fuse(self) -> Any:
        return __getattr__("fuse")

    @fuse.setter
    def fuse(self, module: ModuleType) -> None:
        """Ignore the module, which Python puts here whenever it imports it."""


sys.modules[__name__].__class__ = _Package
