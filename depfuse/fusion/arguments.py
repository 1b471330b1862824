"""What `fuse` is called with, in the forms that people have it: recipes by name, data of any kind, any precision."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from depfuse.data.batches import as_loader
from depfuse.data.loader import Loader
from depfuse.errors import DataError, RecipeError
from depfuse.fusion.checks import check_weights
from depfuse.fusion.class_names import check_class_names
from depfuse.fusion.label_order import in_one_order
from depfuse.fusion.parents import Parents
from depfuse.fusion.prepared import Inputs
from depfuse.models.inputs import check_input
from depfuse.networks.copying import fit_example
from depfuse.networks.forward import Call, Called, Example
from depfuse.networks.precision import in_full_precision
from depfuse.recipe import Recipe
from depfuse.recipe.presets import as_recipe
from depfuse.tasks.batch_inputs import as_labels
from depfuse.tasks.label_kinds import are_classes
from depfuse.tasks.selection import ScoresFunction

RecipeLike = Recipe | str | Path | Mapping[str, Any]
"""A recipe, the name of a preset, a file of settings, or settings."""
CalibrationLike = Loader | Tensor | np.ndarray | Iterable[Any]
"""Unlabelled data: a loader, a tensor or array, a data set, or anything that yields batches; see `as_loader`."""
LabelsLike = Tensor | np.ndarray | Sequence[int]
"""A whole number for each sample."""


def read_arguments(
    parents: Sequence[nn.Module] | Parents,
    recipe: RecipeLike | CalibrationLike | None,
    calibration: CalibrationLike | None,
    call: Call | None,
    scores: ScoresFunction | None = None,
    task: str | None = None,
) -> tuple[Inputs, Parents]:
    """Read a recipe and collect the calibration data; data in the place of the recipe are data.

    Returns
    -------
    Inputs, Parents
        The arguments in one form each, and the parents in the types that they were given in; those that know the same
        labels in other orders are copied with their outputs in one.

    Raises
    ------
    RecipeError
        The recipe is none, there are no parents, or they know different classes, and no labels say so.
    DataError
        See `as_loader`.
    """
    parents = Parents.of(parents)
    check_weights(parents.models)
    if parents.labels is None:
        check_class_names(parents.models)
    models = in_full_precision(parents.models)
    settings, loader = _read_data(models, recipe, calibration, call)
    example = as_called(parents.example, call)
    ordered = in_one_order(parents, loader.example() if example is None and loader is not None else example)
    if ordered is not parents:
        parents, models = ordered, in_full_precision(ordered.models)
    computed = replace(parents, models=models, example=example)
    if task is not None:
        settings = settings.changed(task=task)
    return Inputs(computed, settings, loader, scores), parents


def _read_data(
    models: Sequence[nn.Module],
    recipe: RecipeLike | CalibrationLike | None,
    calibration: CalibrationLike | None,
    call: Call | None,
) -> tuple[Recipe, Loader | None]:
    if recipe is not None and not _is_recipe(recipe):
        if calibration is not None:
            raise RecipeError(
                f"the recipe is a {type(recipe).__name__}: give a Recipe, the name of a preset, or settings"
            )
        recipe, calibration = None, recipe
    settings = as_recipe(recipe)  # type: ignore[arg-type]
    if calibration is None or not models:
        return settings, None
    return settings, read_calibration(models[0], settings, calibration, call)


def read_calibration(model: nn.Module, recipe: Recipe, source: CalibrationLike, call: Call | None = None) -> Loader:
    """Collect as many calibration samples as a recipe wants, as a network in full precision takes them.

    Raises
    ------
    DataError
        See `as_loader`.
    """
    wanted = recipe.calibration
    return as_loader(source, model, images=wanted.images, batch_size=wanted.batch_size, call=call, seed=recipe.seed)


def as_test_loader(source: CalibrationLike, like: nn.Module, labels: LabelsLike | None, call: Call | None) -> Loader:
    """Collect data of any kind to score networks on: all of it, in order, with its labels where there are any.

    Parameters
    ----------
    source
        As `as_loader` takes it; also a pair of inputs and labels.
    like
        A network that takes the data.
    labels
        The label of each sample, where they are not in the batches.
    call
        How a network is run on a batch, where it is not by the inputs that the batch begins with.

    Raises
    ------
    DataError
        There is not one label for each sample, or a network does not take the data.
    """
    if labels is None and isinstance(source, tuple) and len(source) == 2 and _are_labels(source[1], source[0]):
        source, labels = source
    loader = as_loader(source, like, images=sys.maxsize, call=call, scored=True)
    check_input(like, fit_example(loader.example(), like))
    if labels is not None:
        given = as_labels(labels)
        if given.dim() == 0 or len(given) != loader.count:
            count = len(given) if given.dim() else 1
            raise DataError(f"{count} labels for {loader.count} test samples: give one for each")
        split = replace(loader.split, labels=given)
        loader = Loader(split, loader.preprocessing, batch_size=loader.batch_size, device=loader.device)
    return loader


def _are_labels(second: object, first: object) -> bool:
    """Tell whether the second of two arrays holds a whole number for each sample of the first."""
    if not all(isinstance(part, (Tensor, np.ndarray)) for part in (first, second)):
        return False
    labels = as_labels(second)
    return are_classes(labels) and len(labels) == len(first)  # type: ignore[arg-type]


def as_called(example: Example | None, call: Call | None) -> Example | None:
    """Give an example the user's function, as batches have it."""
    return example if example is None or call is None or isinstance(example, Called) else Called(example, call)


def _is_recipe(value: object) -> bool:
    """Tell whether that is a recipe in one of its forms; a mapping that holds tensors is data."""
    if isinstance(value, Mapping):
        return not any(isinstance(entry, (Tensor, np.ndarray)) for entry in value.values())
    return isinstance(value, (Recipe, str, Path))
