"""Alignment: match the channels of one parent to those of another."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depfuse.align.aligner import align
    from depfuse.align.coupling import Coupling, Couplings, apply_couplings, compose, invert
    from depfuse.align.judge import Judge
    from depfuse.align.solution import Alignment

__all__ = ["Alignment", "Coupling", "Couplings", "Judge", "align", "apply_couplings", "compose", "invert"]

_HOMES = {
    "depfuse.align.aligner": ("align",),
    "depfuse.align.coupling": ("Coupling", "Couplings", "apply_couplings", "compose", "invert"),
    "depfuse.align.judge": ("Judge",),
    "depfuse.align.solution": ("Alignment",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a recipe looks up the solvers' names without torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
