"""What `fuse` is called with, in the forms that people have it: recipes by name, data of any kind, any precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from depfuse.data.batches import as_loader
from depfuse.data.loader import Loader
from depfuse.errors import RecipeError
from depfuse.networks.calling import Call, Called, Example
from depfuse.recipe import Recipe
from depfuse.recipe.presets import as_recipe

RecipeLike = Recipe | str | Path | Mapping[str, Any]
"""A recipe, the name of a preset, a file of settings, or settings."""
CalibrationLike = Loader | Tensor | np.ndarray | Iterable[Any]
"""Unlabelled data: a loader, a tensor or array, a data set, or anything that yields batches; see `as_loader`."""


def read_arguments(
    models: Sequence[nn.Module],
    recipe: RecipeLike | CalibrationLike | None,
    calibration: CalibrationLike | None,
    call: Call | None,
) -> tuple[Recipe, Loader | None]:
    """Read a recipe and collect the calibration data; data in the place of the recipe are data.

    Raises
    ------
    RecipeError
        The recipe is none, or there are no parents.
    DataError
        See `as_loader`.
    """
    if recipe is not None and not _is_recipe(recipe):
        if calibration is not None:
            raise RecipeError(
                f"the recipe is a {type(recipe).__name__}: give a Recipe, the name of a preset, or settings"
            )
        recipe, calibration = None, recipe
    settings = as_recipe(recipe)  # type: ignore[arg-type]
    if calibration is None or not models:
        return settings, None
    wanted = settings.calibration
    loader = as_loader(
        calibration, models[0], images=wanted.images, batch_size=wanted.batch_size, call=call, seed=settings.seed
    )
    return settings, loader


def as_called(example: Example | None, call: Call | None) -> Example | None:
    """Give an example the user's function, as batches have it."""
    return example if example is None or call is None or isinstance(example, Called) else Called(example, call)


def _is_recipe(value: object) -> bool:
    """Tell whether that is a recipe in one of its forms; a mapping that holds tensors is data."""
    if isinstance(value, Mapping):
        return not any(isinstance(entry, (Tensor, np.ndarray)) for entry in value.values())
    return isinstance(value, (Recipe, str, Path))
