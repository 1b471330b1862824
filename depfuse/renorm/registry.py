"""Renormalisation by name; what a method reads is declared in its settings (`depfuse.recipe.renorms.Renorm`)."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import replace

from torch import nn

from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.merge.aligned import AlignedParents
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.isolation import check_changeable, undisturbed
from depfuse.recipe.renorms import RENORMS, renorm_facts
from depfuse.renorm.reset import has_running_statistics


def chosen_method(method: str, model: nn.Module) -> str:
    """Resolve `auto`: reset where the network has BatchNorm, none elsewhere; other names stay.

    Raises
    ------
    RecipeError
        The method is not known, or is `reset` for a network that has no BatchNorm.
    """
    if method == "auto":
        return "reset" if has_running_statistics(model) else "none"
    if method not in RENORMS:
        raise RecipeError(f"renorm {method} is not known: choose from {', '.join(RENORMS)}")
    if method == "reset" and not has_running_statistics(model):
        raise RecipeError(
            f"renorm reset has nothing to reset: {type(model).__name__} has no BatchNorm with running statistics; "
            "choose renorm repair, data-free or none"
        )
    return method


def renormalise(
    model: nn.Module,
    method: str,
    loader: Loader | None,
    parents: AlignedParents | None = None,
    unchanged: Collection[str] = (),
) -> None:
    """Renormalise a network in place by a method's name (see `chosen_method` for `auto`).

    Parameters
    ----------
    model
        The network.
    method
        Its name.
    loader
        Calibration images; their labels are not read. None where the method reads none.
    parents
        The parents of the network; None where the method does not compare it with them.
    unchanged
        Names of BatchNorms whose statistics are right already, for methods that can leave layers alone.

    Raises
    ------
    RecipeError
        The method needs what is not given, is not known, or does not suit the network.
    """
    method = chosen_method(method, model)
    if method == "none":
        return
    chosen = renorm_facts(method)
    if chosen.images and loader is None:
        raise RecipeError(f"renorm {method} needs calibration images: give at least 2, or choose data-free or none")
    arguments: list[object] = []
    if chosen.parents:
        if parents is None:
            raise RecipeError(f"renorm {method} compares a child with its parents: choose reset or none without them")
        networks = [evaluation_copy(network, shared=True) for network in parents.networks]
        arguments.append(replace(parents, networks=networks))
    if not chosen.images and (parents is None or parents.example is None):
        raise RecipeError(f"renorm {method} needs an example input: the network must be run once")
    module, _, name = chosen.place.partition(":")
    function = getattr(importlib.import_module(module), name)
    arguments.append(loader if chosen.images else parents and parents.example)
    if chosen.keeps:
        arguments.append(unchanged)
    check_changeable(model)
    with undisturbed():
        function(model, *arguments)
