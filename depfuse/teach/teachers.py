"""The parents as they teach their child: statistics renewed and one head found, where they know different things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.recipe import Recipe
from depfuse.renorm import has_batch_norm
from depfuse.teach.joint_head import can_have_joint_head, know_different, renewed, with_joint_head


@dataclass(frozen=True)
class Teachers:
    """What a child learns from.

    Attributes
    ----------
    models
        The parents, or changed copies of them.
    labels
        Which labels their outputs stand for, where these still differ.
    joint
        Whether they have one head over all labels together.
    renewed
        Whether their BatchNorm statistics were renewed.
    """

    models: Sequence[nn.Module]
    labels: LabelSets | None
    joint: bool
    renewed: bool = False


def prepare_teachers(
    models: Sequence[nn.Module],
    recipe: Recipe,
    shares: Sequence[float],
    calibration: Loader | None,
    labels: LabelSets | None = None,
    template: nn.Module | None = None,
) -> Teachers:
    """The parents as a recipe has them teach, by its section `teach`.

    Parameters
    ----------
    models
        The parents; left as they are.
    recipe, shares
        How they are prepared, and one weight per parent.
    calibration
        Images to do that by, if there are any.
    labels, template
        Which labels the parents' outputs stand for and a network with an output for each, where they differ; a template
        alone is of another width.

    Raises
    ------
    RecipeError
        The recipe asks for what cannot be had: without images, at another width, or from such heads.
    """
    always = recipe.teach.labelled > 0 or recipe.teach.head == "always"
    if calibration is None:
        if always or recipe.teach.renorm == "reset":
            raise RecipeError(
                "renewing the parents' statistics, labelled and a joint head need calibration images: give at least 2"
            )
        return Teachers(models, labels, joint=False)
    resized = labels is None and template is not None
    if resized and always:
        raise RecipeError("one head is fitted to features of the parents' own widths: leave out --width")
    different = labels is not None or (recipe.learns and know_different(models, calibration))
    renewable = recipe.teach.renorm == "auto" and different and has_batch_norm(models[0])
    renews = renewable or recipe.teach.renorm == "reset"
    if renews:
        models = renewed(models, for_statistics(calibration, recipe))
    wanted = recipe.teach.head == "auto" and different and recipe.learns and not resized
    if always or (wanted and can_have_joint_head(models, calibration, labels)):
        copies = with_joint_head(models, shares, calibration, recipe.teach.labelled, labels, template)
        return Teachers(copies, None, joint=True, renewed=renews)
    return Teachers(models, labels, joint=False, renewed=renews)


def for_statistics(calibration: Loader, recipe: Recipe) -> Loader:
    """The calibration images as statistics are taken from them."""
    if not recipe.calibration.augment:
        return calibration
    return calibration.augmented(Augmentation.suited_to(calibration.image_shape), recipe.seed)
