"""Check the parents, and whether the recipe suits them, before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_leaves

from depfuse.data.inputs import Ragged
from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.fusion.soundness import check_variances
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating
from depfuse.recipe import Recipe
from depfuse.recipe.goals import Best
from depfuse.recipe.sections import Reference
from depfuse.renorm import chosen_method, untracked_statistics
from depfuse.tasks.batch_inputs import kind_of
from depfuse.text import counted


def label_sets(
    labels: Sequence[Sequence[int]] | None, models: Sequence[nn.Module], template: nn.Module | None
) -> LabelSets | None:
    """Check the parents' labels; None where they are the same for all.

    Raises
    ------
    RecipeError
        They do not fit the parents, or differ without a template.
    """
    if labels is None:
        return None
    sets = LabelSets.create(labels)
    sets.check(models, template)
    return None if sets.same else sets


def check_parents(models: Sequence[nn.Module], labels: LabelSets | None = None) -> None:
    """Raise `RecipeError` unless there are two parents or more with finite tensors of equal names and ranks.

    Nor may a variance be negative.

    Where the parents have different labels, the shapes may differ by their numbers only.
    """
    if len(models) < 2:
        raise RecipeError(f"{counted(len(models), 'parent')} given: fusion needs at least two")
    first = models[0].state_dict()
    for number, model in enumerate(models, start=1):
        state = model.state_dict()
        if different := first.keys() ^ state.keys():
            key = next(key for key in (*first, *state) if key in different)
            raise RecipeError(
                f"parent {number} is of another architecture or depth than parent 1: {key} is in one of them only"
            )
        for key, tensor in state.items():
            fits = tensor.dim() == first[key].dim() if labels is None else tensor.shape == first[key].shape
            if not fits and not _differs_by_labels(tensor, first[key], number, labels):
                if labels is not None and tensor.dim() == first[key].dim():
                    counts = [len(labels.sets[own - 1]) for own in (number, 1)]
                    raise RecipeError(
                        f"parent {number} does not fit parent 1 with {counts[0]} labels beside {counts[1]}: `labels`"
                        f" names each output of a parent once, and {key} has shape {tuple(tensor.shape)} beside"
                        f" {tuple(first[key].shape)}{_with_others(tensor, first[key], counts)}"
                    )
                raise RecipeError(
                    f"parent {number} does not fit parent 1: {key} has shape {tuple(tensor.shape)}, "
                    f"not {tuple(first[key].shape)}"
                )
            if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
                raise RecipeError(
                    f"parent {number} holds NaN or infinite values in {key}: give an earlier checkpoint of it"
                )
        check_variances(state, number)


def check_weights(models: Any) -> None:
    """Raise `RecipeError` unless these are networks, and all of their tensors hold numbers that can be averaged."""
    if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
        raise RecipeError("one network is given: give a list of two or more parents")
    if isinstance(models, Mapping):
        raise RecipeError("the parents are a dictionary: give a list of two or more networks")
    for number, model in enumerate(models, start=1):
        if not isinstance(model, nn.Module):
            known = {
                "make the network, and load them by its load_state_dict": isinstance(model, Mapping),
                "load it by depfuse.load(...)": isinstance(model, (str, Path)),
                "give the network": True,
            }
            load = next(said for said, suits in known.items() if suits)
            raise RecipeError(f"parent {number} is {kind_of(model)}, not an nn.Module: {load}")
    for number, model in enumerate(models, start=1):
        if isinstance(model, GraphModule) and "eval" in vars(model):  # torch.export gives such, of one mode
            raise RecipeError(f"parent {number} is an exported program: give the network that it was made from")
        for key, tensor in model.state_dict().items():
            if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
                raise RecipeError(
                    f"parent {number} has no weights yet ({key} is of a lazy layer): run it once, or load them first"
                )
            if "packed_params" in key or (isinstance(tensor, Tensor) and tensor.is_quantized):
                raise RecipeError(
                    f"parent {number} is quantised ({key}): fuse the networks first, and quantise the child"
                )
            if not isinstance(tensor, Tensor):
                raise RecipeError(
                    f"parent {number} keeps a {type(tensor).__name__} in {key}, which cannot be averaged: leave it out "
                    "of the state"
                )
            if tensor.is_meta:
                raise RecipeError(f"parent {number} has no weights yet ({key} is on the meta device): load them first")
            if tensor.layout != torch.strided:
                raise RecipeError(f"parent {number} holds sparse values in {key}: make them dense (to_dense) first")


def check_images(recipe: Recipe, calibration: Loader | None) -> None:
    """Raise `RecipeError` where the recipe, its refit resolved, needs images, or samples of one shape, and has none."""
    if calibration is not None:
        if isinstance(calibration.images, Ragged) and (recipe.refits or recipe.goal.name == "best"):
            setting = f"refit {recipe.refit.name}" if recipe.refits else "goal best"
            raise RecipeError(f"{setting} needs samples of one shape: give such, or choose refit none")
        return
    merge = recipe.merge
    if merge.weights_by != "network" or merge.average == "fisher":
        setting = (
            f"merge.average {merge.average}"
            if merge.weights_by == "network"
            else f"merge.weights_by {merge.weights_by}"
        )
        raise RecipeError(f"{setting} needs calibration images: give at least 4, better 1000")
    if recipe.refits:
        raise RecipeError(f"refit {recipe.refit.name} needs calibration images: give at least 2, better 2000")
    if recipe.goal.name == "best":
        raise RecipeError("goal best needs calibration images: give at least 8, better 2000")


def say_what_is_not_augmented(recipe: Recipe, calibration: Loader | None) -> None:
    """Warn where a recipe names that images are flipped and shifted, and the calibration data are none.

    Where that is left to the default, as in the steps of a refit, nobody asked for it.

    Raises
    ------
    RecipeError
        It says that mirror images mean the same, and there are no images.
    """
    if calibration is None or calibration.pictures:
        return
    none = "the calibration data are no images (N, C, H, W) nor volumes of floats, as far as is known"
    if recipe.calibration.mirror:
        raise RecipeError(f"`calibration.mirror=true` mirrors images, and {none}: leave it out")
    steps = recipe.candidates
    named = {
        "calibration.augment": recipe.calibration.augment,
        f"{'goal' if isinstance(steps, Best) else 'refit'}.augment": steps is not None
        and steps.augment
        and "augment" in steps.model_fields_set,
    }
    for setting in [name for name, wanted in named.items() if wanted]:
        warnings.warn(f"{setting}: {none}, and are not flipped and shifted", DepfuseWarning, stacklevel=3)


def check_renorm(recipe: Recipe, model: nn.Module) -> None:
    """Raise `RecipeError` where the recipe wants statistics that the network does not have."""
    method = chosen_method(recipe.renorm.name, model)
    if recipe.teach.renorm == "reset":
        chosen_method("reset", model)
    if recipe.calibration.augment and method == "none":
        raise RecipeError(
            f"calibration.augment has no statistics to renew: {type(model).__name__} has no BatchNorm; choose renorm "
            "repair or rescale, or leave it out"
        )


def check_outputs(models: Sequence[nn.Module], example: Example | None) -> None:
    """Raise `RecipeError` where parents of several shapes have several numbers of outputs, and no labels say why."""
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in models]
    if example is None or all(own == shapes[0] for own in shapes):
        return
    with torch.no_grad():
        outputs = [run_network(model, fit_example(example, model)) for model in models]
    counts = [tuple(found.shape[1:]) for found in outputs if isinstance(found, Tensor)]
    for number, count in enumerate(counts, start=1):
        if len(counts) == len(models) and count != counts[0]:
            raise RecipeError(
                f"parent {number} has {_outputs(count)}, and parent 1 {_outputs(counts[0])}: where they know different"
                " labels, say by `labels` which each of them knows"
            )


def _with_others(tensor: Tensor, first: Tensor, counts: Sequence[int]) -> str:
    """Say of a layer that gives as many numbers more than labels in two parents that it should not; else nothing."""
    more = {own.shape[0] - count for own, count in zip((tensor, first), counts, strict=True) if own.dim()}
    if len(more) != 1 or (other := more.pop()) < 1:
        return ""
    return f"; the {other} that it gives besides labels, such as boxes, need a layer of their own"


def check_real(model: nn.Module, example: Example | None) -> None:
    """Raise `RecipeError` where a network gives complex numbers, which no task has."""
    if example is None:
        return
    with torch.no_grad(), evaluating(model):
        outputs = tree_leaves(run_network(model, fit_example(example, model)))
    if outputs and all(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in outputs):
        raise RecipeError(
            f"{type(model).__name__} gives complex numbers, and outputs are compared as real ones: let it give"
            " torch.view_as_real of them"
        )


def check_label_counts(
    models: Sequence[nn.Module], template: nn.Module | None, sets: LabelSets, example: Example | None
) -> None:
    """Raise `RecipeError` where a parent or the template has not one output (N, L, ...) for each of its labels."""
    if example is None:
        return
    for number, (model, labels) in enumerate(zip(models, sets.sets, strict=True), start=1):
        count = _count_outputs(model, example)
        if count is not None and count != len(labels):
            raise RecipeError(
                f"parent {number} has {count} outputs, and {len(labels)} labels are said of it: `labels` names each of"
                " its outputs once"
            )
    count = None if template is None else _count_outputs(template, example)
    if count is not None and count != len(sets.joint):
        raise RecipeError(
            f"the parents know {len(sets.joint)} labels together, and the child's network has {count} outputs: it needs"
            " one for each"
        )


def _count_outputs(model: nn.Module, example: Example) -> int | None:
    with torch.no_grad():
        output = run_network(model, fit_example(example, model))
    return output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else None


def _outputs(shape: Sequence[int]) -> str:
    return f"{shape[0]} outputs" if len(shape) == 1 else f"outputs of shape {tuple(shape)}"


def warn_of_statistics(model: nn.Module, recipe: Recipe) -> None:
    """Warn of running statistics that no renormalisation computes anew."""
    found = [] if recipe.renorm.name == "none" else untracked_statistics(model)
    if found:
        named = ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")
        warnings.warn(
            f"{named}: running statistics that no BatchNorm layer of torch's has are averaged, and not computed anew"
            " from the child's activations; write the module with nn.BatchNorm1d, 2d or 3d to have them reset",
            DepfuseWarning,
            stacklevel=3,
        )


def check_unequal(recipe: Recipe, template: nn.Module | None) -> None:
    """Raise `RecipeError` where the recipe does not suit parents of unequal widths."""
    if recipe.align.through != Reference() or recipe.align.order is not None:
        raise RecipeError(
            "parents of unequal widths are matched to the one that has the child's width: leave out "
            "align.through and align.order"
        )
    if template is not None and recipe.merge.width_of is not None:
        raise RecipeError("the child's width is given twice: leave out merge.width_of or `template`")


def example_of(example: Example | None, calibration: Loader | None) -> Example:
    """Find an input (1, ...) to run a network on: the one given, or the first image.

    Raises
    ------
    RecipeError
        There is neither.
    """
    if example is not None:
        return example
    if calibration is None:
        raise RecipeError("give an example input or calibration images: the network must be run once to be traced")
    return calibration.example()


def _differs_by_labels(tensor: Tensor, first: Tensor, number: int, labels: LabelSets | None) -> bool:
    if labels is None or tensor.dim() != first.dim():
        return False
    different = [sizes for sizes in zip(tensor.shape, first.shape, strict=True) if sizes[0] != sizes[1]]
    counts = len(labels.sets[number - 1]), len(labels.sets[0])
    return len(different) == 1 and different[0][0] * counts[1] == different[0][1] * counts[0]
