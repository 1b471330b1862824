"""Choose the unlabelled images that the parents together know least of."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.fusion.arguments import CalibrationLike, read_arguments
from depfuse.fusion.parents import Parents
from depfuse.fusion.prepared import Prepared
from depfuse.networks.isolation import isolated
from depfuse.progress import ProgressLike, shown
from depfuse.recipe import Recipe
from depfuse.teach.ask import most_telling


@isolated()
def ask(
    parents: Sequence[nn.Module] | Parents,
    images: CalibrationLike,
    number: int,
    *,
    seed: int = 0,
    progress: ProgressLike = None,
) -> Tensor:
    """Choose images to be labelled: of which the parents together know least, and which differ from each other.

    Where parents know different things, that is whose image it is. With labels of these, put before the other
    calibration images, `fuse` finds a better head for all parents (`teach.labelled`).

    Parameters
    ----------
    parents
        As `fuse` takes them.
    images
        Unlabelled training images of any kind that `fuse` takes, all of which are looked at.
    number
        How many to choose.
    seed
        Of the choice between images alike.
    progress
        As of `fuse`.

    Returns
    -------
    Tensor
        Their numbers (n,) int64, ascending, in the order in which the images come.

    Raises
    ------
    RecipeError
        The networks tell no classes apart.
    DataError
        There are not so many images.
    """
    recipe = Recipe.create({"train.self_training": 1, "calibration.images": sys.maxsize}, seed=seed)
    inputs, _ = read_arguments(parents, recipe, images, None)
    with shown(progress):
        prepared = Prepared.of(inputs)
        loader, task = prepared.inputs.calibration, prepared.meaning.scored
        assert loader is not None, "images were given"
        if task.name != "classes":
            raise RecipeError(f"images are chosen by classes, and the networks' outputs are of task {task.name}")
        mirrored = loader.suited_augmentation.flip
        ensemble = prepared.ensemble
        if ensemble.joint and mirrored:
            ensemble = prepared.ensemble_of(loader, mirrored=True)
        return most_telling(ensemble, loader, number, prepared.labels, mirrored=mirrored, seed=seed)
