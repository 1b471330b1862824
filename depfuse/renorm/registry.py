"""Renormalisation by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.renorm.batch_norm import has_batch_norm, reset_batch_norm

METHODS: dict[str, Callable[[nn.Module, Loader], None]] = {"reset": reset_batch_norm}


def renormalise(model: nn.Module, method: str, loader: Loader | None) -> None:
    """Renormalise a network in place by `none`, `reset`, or `auto` (reset where it has BatchNorm).

    Raises
    ------
    RecipeError
        The method needs calibration images and there are none, or is not known.
    """
    if method == "auto":
        method = "reset" if has_batch_norm(model) else "none"
    if method == "none":
        return
    if method not in METHODS:
        raise RecipeError(f"renorm {method} is not known: choose from none, auto, {', '.join(METHODS)}")
    if loader is None:
        raise RecipeError(f"renorm {method} needs calibration images: give at least 2, or choose renorm none")
    METHODS[method](model, loader)
