"""Evaluate networks, alone and as an ensemble, in one pass over labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.inputs import take_samples
from depfuse.ensemble import targets
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, RecipeError
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example, in_layout, run_network
from depfuse.networks.isolation import undisturbed
from depfuse.networks.memory_format import choose_layout
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
    return _score(models, batches, [], task=task)


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
    shares = list(weights) if weights is not None else [1.0 / len(models)] * len(models)
    if len(shares) != len(models):
        raise RecipeError(f"{len(shares)} weights for an ensemble of {len(models)} networks: give one each")
    *members, ensemble = _score(models, batches, [shares], sets, task)
    return members, ensemble


def evaluate_ensemble(
    models: Sequence[nn.Module], batches: Batches, weights: Sequence[float] | None = None, task: Task = CLASSES
) -> Scores:
    """Score the (weighted) ensemble of the networks; see `evaluate_with_ensemble`."""
    return evaluate_with_ensemble(models, batches, weights, task=task)[1]


@undisturbed()
def _score(
    models: Sequence[nn.Module],
    batches: Batches,
    ensembles: Sequence[Sequence[float]],
    sets: LabelSets | None = None,
    task: Task = CLASSES,
) -> list[Scores]:
    """Score every network, then every ensemble (one share per network), in one pass."""
    # What is not in evaluation mode is copied instead of being switched: other threads may use it meanwhile.
    models = [m if not any(part.training for part in m.modules()) else evaluation_copy(m, shared=True) for m in models]
    tallies = [task.tally() for _ in range(len(models) + len(ensembles))]
    layouts: list[torch.memory_format] = []
    with torch.inference_mode():
        for inputs, labels in batches:
            layouts = layouts or [checked_layout(model, take_samples(inputs, slice(0, 1)), task) for model in models]
            outputs = [
                run_network(model, in_layout(inputs, layout)) for model, layout in zip(models, layouts, strict=True)
            ]
            joined = [combine_outputs(outputs, shares, sets, task) for shares in ensembles]
            outputs = [*(outputs if sets is None else sets.of_outputs(outputs)), *joined]
            for tally, logits in zip(tallies, outputs, strict=True):
                tally.add(logits, labels)
    return [tally.scores() for tally in tallies]


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


def checked_layout(model: nn.Module, image: Example, task: Task = CLASSES) -> torch.memory_format:
    """Choose the memory format of a network's inputs, and refuse one whose outputs are not of the task."""
    layout, output = choose_layout(model, image)
    if not isinstance(output, Tensor):
        raise DataError(
            f"the network gives a {type(output).__name__} of outputs: say which tensor of it is scored, as `scores`"
        )
    if task.name == CLASSES.name and output.dim() != 2:
        raise DataError(
            f"the network gives {tuple(output.shape)} for one image, and class scores are (images, classes): name the"
            " `task` that it is of"
        )
    return layout
