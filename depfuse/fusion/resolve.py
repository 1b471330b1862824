"""Resolve `auto` in a recipe, once the parents and the images are known.

Searches on real networks found one method best for all convolutional networks that were tried: refit by ridge for
clusters. The best 17 of 24 trials on a pair of BatchNorm networks for the digits had it, whatever they matched by, and
the best five of nine on a pair of networks without normalisation for MNIST. Per cent of the test images, without a
refit and with it: digits of different knowledge, five pairs, 75.5 and 98.8; ResNet20 run8-1 and run8-2 63.9 and 88.9;
ResNet56 run3 and run5 73.8 and 90.4; ResNet18 of width 16 77.8 and 86.7; MNIST's pair 92.5 and 95.6. Networks of one,
two and three dimensions and transformers gain as much (docs/results/tasks.md): a small one with LayerNorm on digits has
39.2 per cent without a refit and 83.8 with it. Larger networks were not searched on: they are not refitted unless the
user says so. Whatever the network, a refit stays only where it helps (`StepAcceptance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.inputs import Ragged
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.fusion.child_builder import FinishedChild
from depfuse.fusion.mirror_images import Mirroring
from depfuse.fusion.same_start import share_a_start
from depfuse.fusion.widths import WidthMatch
from depfuse.networks.counting import multiply_adds
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating
from depfuse.recipe import Recipe
from depfuse.recipe.reads import is_read
from depfuse.recipe.refits import AutoRefit
from depfuse.refit import can_be_refitted
from depfuse.renorm.reset import BATCH_NORM
from depfuse.tasks.task import Task
from depfuse.teach.teachers import Teachers

LARGEST = 1_000_000_000  # multiply-adds for an image, of the networks that were searched on
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def resolve_refit(
    recipe: Recipe,
    models: Sequence[nn.Module],
    child: nn.Module,
    images: Loader | None,
    labels: LabelSets | None = None,
    task: Task | None = None,
    unknown: str = "",
) -> tuple[Recipe, str]:
    """Resolve `refit auto` for some parents.

    Parameters
    ----------
    models
        The parents.
    child
        A network of the child's width.
    images
        Calibration images, if there are any.
    labels
        The parents' label sets, where these differ.
    task
        What the outputs mean; by their shape where None.
    unknown
        Why nothing is known of the outputs, which nothing can be refitted to then.

    Returns
    -------
    Recipe, str
        The resolved recipe, and one sentence that says what it became and why; empty where nothing was open.
    """
    if recipe.refit.name != "auto":
        return recipe, ""
    against = _against(recipe, models, child, images) or unknown
    against = against or _in_place(recipe, models, child, images, labels, task)
    if against:
        why = f"refit auto is none here: {against}"
        made = recipe.changed(refit="none")
        if needless := made.teaches_nobody(why):
            raise RecipeError(needless)
        for path in sorted(recipe.differing.keys() - made.differing.keys()):
            value = recipe.settings[path]
            raise RecipeError(f"{path} {value} would be ignored: {why}; leave {path} out, or give refit ridge")
        return made, why
    why = f"refit auto is ridge here, as is best for {_kind(models[0])}; refit none leaves it out"
    return recipe.changed(refit="ridge"), why


def _against(recipe: Recipe, models: Sequence[nn.Module], child: nn.Module, images: Loader | None) -> str:
    """Give the reason against a refit by ridge; empty where there is none."""
    solver, renorm = recipe.align.solver, recipe.renorm.name
    if recipe.task.name == "none":
        return "task none knows nothing of the outputs"
    if recipe.goal.name == "best":
        return "goal best refits its candidates itself"
    if solver.gives != "permutation":
        return f"solver {solver.name} gives no permutations, which a refit needs"
    if renorm not in ("auto", "none", "reset"):
        return f"renorm {renorm} is for weights that are averaged"
    if recipe.calibration.augment:
        return "calibration.augment renews statistics that ridge would have set"
    if recipe.merge.keep_worst == 1.0:
        return "with keep_worst 1 no channels are merged"
    if images is None:
        return "there are no calibration images"
    if _any_wider(models, child):
        return "a parent is wider than the child, and what it loses cannot be followed"
    return _unsuited(models[0], images)


def resolve(
    recipe: Recipe,
    finished: FinishedChild,
    teachers: Teachers,
    *,
    widths: WidthMatch | None,
    template: nn.Module | None,
) -> Recipe:
    """Fill in every setting that a recipe left open, so that a fusion by it makes the same child.

    Parameters
    ----------
    recipe
        With its refit.
    finished
        The child, and the steps after its merge.
    teachers
        How the parents were prepared.
    widths, template
        How the parents were mapped to the child's width where theirs is another, and the network of the child's shapes
        where no parent has them.
    """
    renorm = finished.renorm(recipe)
    if finished.refit_left_out:
        recipe = recipe.changed(refit="none")
    resolved: dict[str, Any] = {
        "renorm": renorm,
        "teach.renorm": "reset" if teachers.renewed else "none",
        "teach.head": "recall" if teachers.recalled else "always" if teachers.joint and not teachers.heads else "none",
        "merge.weights": recipe.shares(len(teachers.models)),
    }
    if widths is None:
        resolved["align.order"] = recipe.align.kept + 1
    elif template is None:
        resolved["merge.width_of"] = widths.reference + 1
    if widths is None and recipe.align.through.name == "reference":
        resolved["align.through.parent"] = recipe.align.target + 1
    return recipe.changed(resolved)


def resolve_targets(recipe: Recipe) -> Recipe:
    """Fill in distance scaled where a recipe leaves it open and the child is refitted to clusters.

    Such a child depends little on the matching, so that trying several distances would be lost time.
    """
    ridge = recipe.candidates
    by_clusters = recipe.refit.name == "ridge" and ridge is not None and ridge.targets == "clusters"
    return _compared_by(recipe, "scaled") if by_clusters and recipe.align.choose == "whole" else recipe


def resolve_mirroring(
    recipe: Recipe, copies: Sequence[nn.Module], ensemble: Ensemble, images: Loader | None
) -> tuple[Recipe, Mirroring]:
    """Fill in whether images are mirrored where that is read and left open, as the parents tell.

    Of data that are no images it is filled in that the steps of a refit leave them as they are.

    Parameters
    ----------
    copies, ensemble
        The parents, and as teachers together, which tell of detectors whose classes differ.
    images
        The calibration images, or those to train on; None where there are none.
    """
    given = recipe.calibration.mirror
    if images is not None and not images.pictures:
        read = is_read("refit.augment", recipe.settings)
        return (recipe.changed({"refit.augment": False}) if read else recipe), Mirroring(given)
    if given is not None or images is None or ensemble.task is None:
        return recipe, Mirroring(given)
    if not is_read("calibration.mirror", recipe.settings):
        return recipe, Mirroring()
    alone = [Ensemble([model], (1.0,), task=ensemble.task) for model in copies]
    found = Mirroring.told_by([ensemble] if ensemble.heads else alone, images)
    return (recipe if found.allowed is None else recipe.changed({"calibration.mirror": found.allowed})), found


def resolve_distance(recipe: Recipe, distances: Sequence[str]) -> Recipe:
    """Fill in the distance that the parents were matched by; `best` stays where there were several."""
    if recipe.align.choose == "groups":
        return recipe
    if recipe.align.criterion.name != "activations" or not distances:
        return _compared_by(recipe, recipe.align.distances[0])  # only a matching by activations alone tries all
    return _compared_by(recipe, distances[0]) if len(distances) == 1 else recipe


def _compared_by(recipe: Recipe, distance: str) -> Recipe:
    """Fill in a distance where a recipe leaves one open."""
    settings = recipe.settings
    paths = ("align.criterion.distance", "align.solver.start.distance")
    return recipe.changed({p: distance for p in paths if settings.get(p) == "best" and is_read(p, settings)})


def check_widths(recipe: Recipe, *, one_width: bool) -> None:
    """Raise `RecipeError` where a setting is of unequal widths, and there are none."""
    for name in ("align.solver.masses", "merge.width_of") if one_width else ():
        if (value := recipe.differing.get(name)) is not None:
            raise RecipeError(
                f"{name} {value} would be ignored: the parents have one width, and it is for several; leave it out"
            )


def _in_place(
    recipe: Recipe, models: Sequence[nn.Module], child: nn.Module, images: Loader | None,
    labels: LabelSets | None, task: Task | None,
) -> str:  # fmt: skip
    """Give the reason why parents need no refit; empty where they share no start, or the user says how to refit."""
    if recipe.refit != AutoRefit():
        return ""
    if images is None or labels is not None or _any_wider([child], models[0]) or _any_wider(models, child):
        return ""
    if not share_a_start(models, recipe.shares(len(models)), images, task):
        return ""
    return "the parents share a start, and their plain average agrees with their ensemble as well as the best of them"


def _unsuited(model: nn.Module, images: Loader) -> str:
    """Give the reason why a network is not to be refitted; empty where it is."""
    kinds = {type(module) for module in model.modules()}
    name = type(model).__name__
    if isinstance(images.images, Ragged):
        return "the calibration data are of several shapes"
    if not any(issubclass(kind, (nn.Linear, *CONVOLUTIONS)) for kind in kinds):
        return f"{name} has neither convolutions nor linear layers"
    example = images.example()
    outputs = _outputs(model, example)
    if not isinstance(outputs, Tensor):
        return f"{name} gives several outputs, of which none is known to count"
    size = multiply_adds(model, example)
    if size > LARGEST:
        return f"{name} takes {size:.2g} multiply-adds for an image, and none of over {LARGEST:.0e} was searched on"
    if not can_be_refitted(model, images):
        return f"{name} cannot be taken apart"
    return ""


def _kind(model: nn.Module) -> str:
    """Name the kind of a network that is refitted: by its layers, and what normalises them."""
    kinds = {type(module) for module in model.modules()}
    norms = ["BatchNorm"] if any(issubclass(kind, BATCH_NORM) for kind in kinds) else []
    norms += sorted({norm.__name__ for norm in OTHER_NORMS for kind in kinds if issubclass(kind, norm)})
    convolutional = any(issubclass(kind, CONVOLUTIONS) for kind in kinds)
    return f"{'convolutional ' * convolutional}networks with {' and '.join(norms) or 'no normalisation'}"


def _outputs(model: nn.Module, image: Example) -> object:
    with torch.no_grad(), evaluating(model):
        return run_network(model, image)


def _any_wider(models: Sequence[nn.Module], child: nn.Module) -> bool:
    """Tell whether a parent has a tensor that is longer than the child's along some axis."""
    shapes = {key: tensor.shape for key, tensor in child.state_dict().items()}
    return any(
        own > other
        for model in models
        for key, tensor in model.state_dict().items()
        for own, other in zip(tensor.shape, shapes[key], strict=True)
    )
