"""Evaluate networks, alone and as an ensemble, in one pass over labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.ensemble import targets
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, RecipeError
from depfuse.evaluate.together import Together
from depfuse.networks.isolation import undisturbed
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.scores import Scores
from depfuse.tasks.task import Task

Batches = Iterable[tuple[Any, Any]]
"""Anything that yields (inputs (N, ...), labels (N, ...)) on the networks' device."""


def evaluate(model: nn.Module, batches: Batches, task: Task = CLASSES) -> Scores:
    """Score one network by what its outputs mean; it runs in evaluation mode and is left in the mode it had.

    Raises
    ------
    DataError
        When there is no image, the images do not fit the network, or the labels do not fit its outputs.
    """
    return evaluate_together([model], batches, task)[0]


def evaluate_together(models: Sequence[nn.Module], batches: Batches, task: Task = CLASSES) -> list[Scores]:
    """Score several networks in one pass over the data, in the order given; see `evaluate`."""
    return evaluate_all([], models, batches, task)[1]


def evaluate_with_ensemble(
    models: Sequence[nn.Module],
    batches: Batches,
    weights: Sequence[float] | None = None,
    sets: LabelSets | None = None,
    task: Task = CLASSES,
) -> tuple[list[Scores], Scores]:
    """Score networks and their ensemble in one pass over the data.

    Parameters
    ----------
    models : sequence of Module
        The members; all have the same number of outputs, unless `sets` says what these stand for.
    batches : iterable
        Labelled images on the networks' device.
    weights : sequence of float, optional
        One share per member, summing to one; equal shares when left out.
    sets : LabelSets, optional
        Which labels the members' outputs stand for, where they differ. A member gives those that it does not know no
        probability; the ensemble has the heads side by side.
    task : Task, optional
        What outputs mean; class scores when left out.

    Returns
    -------
    list of Scores, Scores
        Each member's own, and those of their combination, see `combine_outputs`.
    """
    return evaluate_all([Members(models, weights, sets)], [], batches, task)[0][0]


def evaluate_ensemble(
    models: Sequence[nn.Module], batches: Batches, weights: Sequence[float] | None = None, task: Task = CLASSES
) -> Scores:
    """Score the (weighted) ensemble of the networks; see `evaluate_with_ensemble`."""
    return evaluate_with_ensemble(models, batches, weights, task=task)[1]


@dataclass(frozen=True, eq=False)
class Members:
    """Networks whose combined outputs are scored, see `combine_outputs`.

    Attributes
    ----------
    networks
        All have the same number of outputs, unless `sets` says what these stand for.
    shares
        One for each, summing to one; equal ones where None.
    sets
        Which labels the members' outputs stand for, where they differ. A member gives those that it does not know no
        probability; the ensemble has the heads side by side.
    alone
        Whether each is scored by itself as well.
    """

    networks: Sequence[nn.Module]
    shares: Sequence[float] | None = None
    sets: LabelSets | None = None
    alone: bool = True

    @property
    def weights(self) -> list[float]:
        """One share for each; raises `RecipeError` where there are more or fewer."""
        count = len(self.networks)
        weights = [1.0 / count] * count if self.shares is None else list(self.shares)
        if len(weights) != count:
            raise RecipeError(f"{len(weights)} weights for an ensemble of {count} networks: give one each")
        return weights


@undisturbed()
def evaluate_all(
    ensembles: Sequence[Members], networks: Sequence[nn.Module], batches: Batches, task: Task = CLASSES
) -> tuple[list[tuple[list[Scores], Scores]], list[Scores]]:
    """Score ensembles and networks in one pass over the data.

    What differs from another network in its last layer alone takes no forward pass of its own, see `Together`.

    Returns
    -------
    list of (list of Scores, Scores), list of Scores
        For each ensemble the scores of its members, where they are wanted, and its own; and each network's.
    """
    members = [network for ensemble in ensembles for network in ensemble.networks]
    weights = [ensemble.weights for ensemble in ensembles]
    of_members = [[task.tally() for _ in ensemble.networks if ensemble.alone] for ensemble in ensembles]
    of_ensembles = [task.tally() for _ in ensembles]
    of_networks = [task.tally() for _ in networks]
    together = Together([*members, *networks], task)
    with torch.inference_mode():
        for inputs, labels in batches:
            outputs = together(inputs)
            for ensemble, shares, own, tally in zip(ensembles, weights, of_members, of_ensembles, strict=True):
                given, outputs = outputs[: len(shares)], outputs[len(shares) :]
                joined = combine_outputs(given, shares, ensemble.sets, task)
                alone = given if ensemble.sets is None else ensemble.sets.of_outputs(given)
                for member, logits in zip(own, alone, strict=False):  # no tallies where none is scored alone
                    member.add(logits, labels)
                tally.add(joined, labels)
            for tally, logits in zip(of_networks, outputs, strict=True):
                tally.add(logits, labels)
    found = [
        ([member.scores() for member in own], tally.scores())
        for own, tally in zip(of_members, of_ensembles, strict=True)
    ]
    return found, [tally.scores() for tally in of_networks]


def combine_outputs(
    outputs: Sequence[Tensor], shares: Sequence[float], sets: LabelSets | None = None, task: Task = CLASSES
) -> Tensor:
    """Combine outputs (N, ...), one share each, to those of the ensemble that is scored.

    Class scores are averaged as they are, or put side by side where networks know different labels; what else outputs
    are, they are combined as the task does.
    """
    if sets is not None:
        return sets.join(outputs, shares, 1)
    shapes = sorted({tuple(own.shape[1:]) for own in outputs})
    if len(shapes) > 1:
        raise DataError(f"networks with outputs of shapes {shapes} cannot be combined into one ensemble")
    if task.name == CLASSES.name:
        return targets.mean_logits(outputs, shares)
    return task.ensemble_target([own.float() for own in outputs], shares, 1.0)
