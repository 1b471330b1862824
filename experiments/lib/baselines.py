"""What a child is compared with: its parents, their ensembles and plain averages.

Each function takes the parents and what they may see, and gives a network over all labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from depfuse import Recipe, fuse
from depfuse.data import Loader
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DataError
from depfuse.fusion.comparison import naive_average
from depfuse.recipe.sections import Train
from depfuse.refit import refit_heads
from depfuse.renorm import renormalise
from depfuse.teach.distil import Distillation
from depfuse.teach.joint_head import renewed
from experiments.lib.material import Joint, Material, Probabilities, ensemble, teachers


@dataclass(frozen=True, eq=False)
class Seen:
    """Parents with their calibration images, if any, and the number of these and their seed."""

    of: Material
    calibration: Loader | None
    images: int
    seed: int

    @property
    def loader(self) -> Loader:
        """The calibration images; `DataError` where there are none."""
        if self.calibration is None:
            raise DataError("calibration images are needed: give at least 2")
        return self.calibration


def parent(seen: Seen, number: int) -> nn.Module:
    """One parent as it is, counted from 1."""
    sets = seen.of.inputs.labels
    return Joint([seen.of.inputs.models[number - 1]], (1.0,), None if sets is None else sets.of(number - 1))


def ensemble_as_it_is(seen: Seen) -> nn.Module:
    """The mean of the parents' logits, or their heads side by side."""
    return ensemble(seen.of)


def ensemble_by_counts(seen: Seen) -> nn.Module:
    """The mean of the parents' logits, weighed by their numbers of training images."""
    return Joint(seen.of.inputs.models, seen.of.shares_by_counts, seen.of.inputs.labels)


def ensemble_of_probabilities(seen: Seen) -> nn.Module:
    """The mean of the parents' class probabilities."""
    parents = Ensemble(seen.of.inputs.models, seen.of.shares, seen.of.inputs.labels)
    return Probabilities(parents)


def ensemble_renewed(seen: Seen) -> nn.Module:
    """The same with the parents' BatchNorm statistics renewed."""
    return ensemble(seen.of, renewed(seen.of.inputs.models, seen.loader))


def ensemble_with_joint_head(seen: Seen, labelled: int = 0) -> nn.Module:
    """The parents with one head over all their features, without labels or from some: the teacher in such a case."""
    taught = teachers(seen.of, seen.loader, Recipe(refit="ridge", joint_head="always", labelled=labelled))
    return Joint(taught.models, seen.of.shares)


def naive(seen: Seen) -> nn.Module:
    """The average of the parents as they stand."""
    labels = seen.of.inputs.labels
    sets = None if labels is None else labels.sets
    return naive_average(seen.of.inputs.models, seen.of.shares, seen.of.groups, sets, seen.of.template)


def naive_reset(seen: Seen) -> nn.Module:
    """The same with BatchNorm statistics of its own."""
    found = naive(seen)
    renormalise(found, "auto", seen.loader)
    return found


def naive_by_counts(seen: Seen) -> nn.Module:
    """The average of the parents by their numbers of training images, with the average of their statistics (FedAvg)."""
    of = seen.of
    return naive_average(of.inputs.models, of.shares_by_counts, of.groups)


def pairs_in_turn(seen: Seen) -> nn.Module:
    """The refitted child of the first two parents, then that of it and the next one, with the share of all before."""
    of = seen.of
    child = of.inputs.models[0]
    for number, parent in enumerate(of.inputs.models[1:], start=1):
        recipe = Recipe.create(refit="ridge", weights=(number / (number + 1), 1 / (number + 1)), seed=seen.seed)
        pair = replace(of.inputs.parents(), models=(child, parent), groups=of.groups)
        child = fuse(pair, recipe.changed(calibration=seen.images), seen.loader).child
    return child


def naive_to_width(seen: Seen, number: int) -> nn.Module:
    """The average of parents of unequal widths, unmatched, as wide as one of them; BatchNorm statistics of its own."""
    result = fuse(seen.of.inputs.models, Recipe(refit="none", width_of=number), seen.loader)
    found = naive_average(result.unmatched, seen.of.shares, result.groups)
    renormalise(found, "reset", seen.loader)
    return found


def best_parent(seen: Seen, epochs: int = 0) -> nn.Module:
    """The parent that agrees best with the ensemble on the calibration images once its head is refitted to it.

    With `epochs`, trained towards the ensemble as a distilled child is.
    """
    of, calibration = seen.of, seen.loader
    training = None
    if epochs:
        training = Distillation(of.without_held_out(seen.images, seen.seed))
    taught = teachers(of, calibration if training is None else training.images(calibration.device, seen.seed))
    template = None if taught.joint else of.template
    heads = refit_heads(taught.models, of.shares, calibration, labels=taught.labels, template=template)
    teacher = Ensemble(taught.models, of.shares, taught.labels, joint=taught.joint)
    best = copy.deepcopy(min(heads, key=EnsembleDistance(teacher, calibration)))
    if training is not None:
        training.train(best, teacher, Train(distil=epochs), seed=seen.seed, name="parent", origin="")
    return best


BASELINES: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function
    for function in (
        parent, ensemble_as_it_is, ensemble_by_counts, ensemble_of_probabilities, ensemble_renewed,
        ensemble_with_joint_head, naive, naive_reset, naive_by_counts, naive_to_width, pairs_in_turn, best_parent,
    )
}  # fmt: skip
