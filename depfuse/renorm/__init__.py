"""Renormalisation: what averaging does to the signal, undone from calibration images or from the weights alone."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depfuse.renorm.batch_norm import has_batch_norm, reset_batch_norm, settle_batch_norm
    from depfuse.renorm.data_free import rescale_by_norms
    from depfuse.renorm.registry import Merged, chosen_method, renormalise
    from depfuse.renorm.repairing import repair

__all__ = [
    "Merged",
    "chosen_method",
    "has_batch_norm",
    "renormalise",
    "repair",
    "rescale_by_norms",
    "reset_batch_norm",
    "settle_batch_norm",
]

_HOMES = {
    "depfuse.renorm.batch_norm": ("has_batch_norm", "reset_batch_norm", "settle_batch_norm"),
    "depfuse.renorm.data_free": ("rescale_by_norms",),
    "depfuse.renorm.registry": ("Merged", "chosen_method", "renormalise"),
    "depfuse.renorm.repairing": ("repair",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a recipe looks up the methods' names without torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
