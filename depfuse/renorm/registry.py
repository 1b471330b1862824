"""Renormalisation by name; what a method reads stands in its settings (`depfuse.recipe.sections.Renorm`)."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from depfuse.align.coupling import Couplings
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.tracing.depgraph import evaluation_copy
from depfuse.merge.shares import Shares
from depfuse.networks.isolation import check_changeable, undisturbed
from depfuse.recipe.sections import RENORMS, renorm_facts
from depfuse.renorm.batch_norm import has_batch_norm


@dataclass(frozen=True, eq=False)
class Merged:
    """The parents and couplings of a child, for the methods that compare it with its parents.

    Attributes
    ----------
    parents, groups, couplings, shares
        The arguments of the merge.
    example
        An input (N, C, H, W) to run the networks with where there are no calibration images.
    """

    parents: Sequence[nn.Module]
    groups: ChannelGroups
    couplings: Sequence[Couplings]
    shares: Shares | Sequence[float]
    example: Tensor | None = None


def chosen_method(method: str, model: nn.Module) -> str:
    """Resolve `auto`: reset where the network has BatchNorm, none elsewhere; other names stay.

    Raises
    ------
    RecipeError
        The method is not known, or is `reset` for a network that has no BatchNorm.
    """
    if method == "auto":
        return "reset" if has_batch_norm(model) else "none"
    if method not in RENORMS:
        raise RecipeError(f"renorm {method} is not known: choose from {', '.join(RENORMS)}")
    if method == "reset" and not has_batch_norm(model):
        raise RecipeError(
            f"renorm reset has nothing to reset: {type(model).__name__} has no BatchNorm with running statistics; "
            "choose renorm repair, data-free or none"
        )
    return method


def renormalise(
    model: nn.Module, method: str, loader: Loader | None, merged: Merged | None = None, kept: Collection[str] = ()
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
    merged
        The parents of the network; None where the method does not compare it with them.
    kept
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
        if merged is None:
            raise RecipeError(f"renorm {method} compares a child with its parents: choose reset or none without them")
        parents = [evaluation_copy(parent, shared=True) for parent in merged.parents]
        arguments += [parents, merged.groups, merged.couplings, merged.shares]
    if not chosen.images and (merged is None or merged.example is None):
        raise RecipeError(f"renorm {method} needs an example input: the network must be run once")
    function = getattr(importlib.import_module(chosen.module), chosen.function)
    arguments.append(loader if chosen.images else merged and merged.example)
    if chosen.keeps:
        arguments.append(kept)
    check_changeable(model)
    with undisturbed():
        function(model, *arguments)
