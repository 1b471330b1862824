"""What the outputs of the parents mean: which tensor counts, and the task that it is of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from depfuse.data.loader import Loader
from depfuse.data.masks import MaskFiles
from depfuse.data.stream import Stream
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.fusion.checks import check_label_counts
from depfuse.fusion.detectors import check_maps, detector_of, label_axis, tensors_of
from depfuse.fusion.same_class_detectors import same_class_detector_of
from depfuse.fusion.seen import IMAGES, MAPS, SEVERAL, Seen, count_of, run_or_none
from depfuse.networks.copying import unwrap
from depfuse.networks.forward import Called, Example
from depfuse.recipe import Recipe
from depfuse.recipe.tasks import TASKS
from depfuse.tasks.choose import by_shape, choose_task, have_same_heads
from depfuse.tasks.evidence import Evidence, are_probabilities, are_softmax, find_evidence
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.selection import (
    ChannelsFirst,
    Counted,
    Packed,
    ScoresFunction,
    check_scores,
    counted_of,
    find_counted,
    find_scores,
    select,
)
from depfuse.tasks.task import Task
from depfuse.tasks.weighted import Weighted, WeightedPart

MASKS = 64  # files of masks that are looked at
LEARNED = "what the outputs mean, by which the child learned"
OF_LABELS = ("classes", "dense", "multilabel")  # tasks of which parents may know different labels


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the parents' outputs before these are looked at.

    Attributes
    ----------
    labels, background
        The parents' label sets, where they differ, and the label of background, where they have one; where label sets
        do not differ, its column.
    template
        A network with an output for each label, where they differ; it returns what the networks do from now on.
    scored
        Images that networks will be scored on: whether their labels are 0 and 1 tells one logit from one number.
    """

    labels: LabelSets | None = None
    template: nn.Module | None = None
    background: int | None = None
    scored: Loader | Stream | None = None


@dataclass(frozen=True, eq=False)
class Meaning:
    """Meaning of the parents' outputs.

    Attributes
    ----------
    scores
        Gives the tensor of an output that is scored; None where the output is one.
    task
        What the child learns; None where nothing is known, and parents are matched and merged only.
    because
        What the task was chosen by, in a sentence; empty where the recipe names it.
    packed
        Gives what the child learns of an output, where that is several tensors.
    doubt
        Says that one number is assumed to be no logit, and how to say otherwise; empty where that is known.
    """

    scores: ScoresFunction | None = None
    task: Task | None = None
    because: str = ""
    packed: ScoresFunction | None = None
    doubt: str = ""

    def with_note(self, *notes: str) -> Meaning:
        """Add to what is said of the choice."""
        return replace(self, because="; ".join([self.because or LEARNED, *notes])) if notes else self

    @property
    def learned(self) -> ScoresFunction | None:
        """Gives what the child learns of an output; None where the output is that."""
        return self.packed or self.scores

    @property
    def scored(self) -> Task:
        """What networks are scored by: of several tensors the main one's task, class scores where nothing is known."""
        return self.task.main.task if isinstance(self.task, Weighted) else self.task or CLASSES

    def check_labelled(self, recipe: Recipe) -> None:
        """Raise `RecipeError` where a recipe learns from classes of images, and outputs are no scores of them."""
        task = self.task or CLASSES
        if task.name == CLASSES.name:
            return
        read = {
            "teach.labelled": recipe.teach.labelled,
            "train.self_training": recipe.train.self_training,
        }
        for setting in [name for name, value in read.items() if value]:
            verb = "learns" if setting == "train.self_training" else "reads"
            raise RecipeError(
                f"{setting} {verb} classes of images, and the networks' outputs are of task {task.name}: leave"
                " it out; train.distil learns from the parents' outputs"
            )

    def check_refit(self, recipe: Recipe) -> None:
        """Raise `RecipeError` where a refit compares outputs image by image, and nothing is known of them."""
        if self.task is None and self.because and recipe.settings.get("refit.steps"):
            raise RecipeError(
                f"refit {recipe.refit.name} ends with steps that compare the outputs for each image, and"
                f" {self.because}: give refit none, or refit.steps 0"
            )

    @classmethod
    def of(
        cls,
        networks: Sequence[nn.Module],
        recipe: Recipe,
        images: Loader | Stream | None,
        example: Example | None,
        scores: ScoresFunction | None,
        known: Known,
    ) -> Meaning:
        """Choose what counts and what it means; from now on the networks return that alone.

        Parameters
        ----------
        networks
            The parents' copies, in evaluation mode.
        recipe
            Its task is read.
        images, example
            Images to run them on, or an input where there are none.
        scores
            The user's choice of the tensor that counts.
        known
            What else is known of their outputs.

        Raises
        ------
        RecipeError
            `scores` fails, or the outputs are not of the shape that the recipe's task has.
        """
        if example is None:
            return cls()
        labels, template, background = known.labels, known.template, known.background
        output = run_or_none(networks[0], example)
        if output is None:
            return cls()  # it does not run, which tracing reports
        if images is not None:
            check_maps(output)
        # What `call` makes of the networks' outputs, no hook of theirs sees.
        made = not isinstance(output, Tensor) and not _is_given(networks[0], example)
        if scores is not None:
            check_scores(scores, output)
        few = example if images is None else next(iter(images.first(SEVERAL)))[0]
        if labels is not None and scores is None and template is not None:
            detector = detector_of(networks, template, recipe.task.name, labels, background, images, few, made=made)
            if detector is not None:
                return cls(detector.classes, detector.task, detector.because, detector.packed)
        counted = () if scores is not None else _counted(networks[0], few, named=recipe.task.name != "detection")
        if labels is None and len(counted) > 1:
            _check_shapes(networks, counted, few)
            detector = same_class_detector_of(networks, recipe.task.name, counted, background, images, few, made=made)
            if detector is not None:
                return cls(detector.classes, detector.task, detector.because, detector.packed)
        if background is not None:
            raise RecipeError(
                "`background` is of detectors: give networks that return class scores with boxes beside them, and"
                " where they know different labels, say by `labels` which each of them knows"
            )
        if labels is None and recipe.task.name in ("auto", "weighted") and len(counted) > 1:
            return cls._of_several(networks, counted, images, example, made=made)
        scores = scores or find_scores(output) or (counted[0] if len(counted) == 1 else None)
        if scores is not None and labels is not None and template is not None:
            scores = _labels_first(scores, [template, *networks], labels, few)
        scores = None if scores is None else counted_of(scores, made=made)
        select(networks if template is None else [*networks, template], scores)
        if labels is not None and not isinstance(output, Tensor):
            check_label_counts(networks, template, labels, few)
        selected = run_or_none(networks[0], few)
        if not isinstance(selected, Tensor):
            if labels is not None:
                raise RecipeError(
                    "`labels` say which outputs each parent has, and in what these networks return no tensor has one"
                    " for each of the parent's labels, and in the child's one for each of all: say which, as `scores`,"
                    " or give the child's network an output for each label"
                )
            if recipe.task.name not in ("auto", "none"):
                raise RecipeError(
                    f"the networks give a {type(output).__name__} of outputs, and task {recipe.task.name} is of one "
                    "tensor: say which, as `scores`"
                )
            return cls()
        if selected.dim() == 0 or len(selected) != count_of(few, len(selected)):
            found = f"of shape {tuple(selected.shape)} for {count_of(few, 0)} images, no entry for each of them"
            if recipe.task.name not in ("auto", "none"):
                named = f"`task={recipe.task.name}`"
                raise RecipeError(f"{named} is of outputs with an entry for each image, and the networks' are {found}")
            return cls(scores, None, f"the outputs are {found}: nothing is known of them")

        # Where labels differ, outputs differ in shape.
        looked_at = networks if labels is None else networks[:1]
        seen = Seen(looked_at, images, example)

        def evidence() -> Evidence:
            if labels is not None:
                return by_shape(selected)
            few = seen.first(MAPS if selected.dim() > 2 else IMAGES)
            same = selected.dim() > 1 and have_same_heads(networks, selected.shape[1])
            return find_evidence(few.outputs, few.inputs, same_heads=same, labels=_labels_of(known.scored))

        chosen = choose_task(recipe.task, selected, lambda: seen.first(IMAGES).outputs, evidence)
        if labels is not None and chosen.task is not None and chosen.task.name not in OF_LABELS:
            raise RecipeError(
                "`labels` say which classes or labels each parent knows, and the outputs are of task"
                f" {chosen.task.name}: name a `task` of {', '.join(OF_LABELS)}, or give no `labels`"
            )
        _warn_of_probabilities(recipe.task.name, chosen.task, seen)
        doubtful = chosen.doubtful and chosen.task is not None and chosen.task.name == "regression"
        return cls(scores, chosen.task, chosen.because, doubt=chosen.because if doubtful else "")

    @classmethod
    def _of_several(
        cls,
        networks: Sequence[nn.Module],
        counted: Sequence[Counted],
        images: Loader | Stream | None,
        example: Example,
        *,
        made: bool,
    ) -> Meaning:
        """Give each of several tensors a task of its own; networks return them packed."""
        shapes = [own(run_or_none(networks[0], example)).shape[1:] for own in counted]
        packed = counted_of(Packed(tuple(counted)), made=made)
        select(networks, packed)
        few = Seen(networks, images, example).first(MAPS if any(len(shape) > 1 for shape in shapes) else IMAGES)
        sizes = [max(1, shape.numel()) for shape in shapes]
        parents = [torch.split(own, sizes, 1) for own in few.outputs]
        parts, said = [], []
        for number, (own, shape) in enumerate(zip(counted, shapes, strict=True)):
            tensors = [parent[number].reshape(-1, *shape) for parent in parents]
            same = bool(shape) and have_same_heads(networks, shape[0])
            found = find_evidence(tensors, few.inputs, same_heads=same)
            task = choose_task(TASKS(found.task), tensors[0], partial(list, tensors)).task
            assert task is not None
            parts.append(WeightedPart(own.name, task, shape, own.weight))
            said.append(f"{own.name}, {task.name}{'' if found.clear else ' (assumed)'}, weight {own.weight:g}")
        main = max(counted, key=lambda own: own.weight)
        because = f"{len(parts)} tensors count: {'; '.join(said)}; {main.name} is scored"
        return cls(counted_of(main, made=made), Weighted.scaled(parts, few.outputs), because, packed)


def _warn_of_probabilities(asked: str, task: Task | None, seen: Seen) -> None:
    """Warn where outputs are what a softmax or sigmoid gives, and tasks are of logits."""
    if task is not None and task.name == "classes" and are_softmax(seen.first(MAPS).outputs):
        warnings.warn(
            "the outputs are probabilities that sum to one, as what a softmax gives, and losses, distances and what a"
            " child learns are of logits: let the networks return what is before it, or `scores` undo it (torch.log)",
            DepfuseWarning,
            stacklevel=3,
        )
    if asked in ("binary", "multilabel") and are_probabilities(seen.first(IMAGES).outputs):
        warnings.warn(
            f"`task={asked}` is of logits, and all outputs lie between 0 and 1, as what a sigmoid gives: every label"
            " counts as predicted then; let `scores` undo the sigmoid (torch.logit), or name task regression",
            DepfuseWarning,
            stacklevel=3,
        )


def _labels_of(images: Loader | Stream | None) -> Tensor | None:
    """Return the labels of images, of masks in files some."""
    labels = None if images is None else images.split.labels
    return labels[:MASKS].decoded() if isinstance(labels, MaskFiles) else labels


def _labels_first(
    scores: ScoresFunction, networks: Sequence[nn.Module], labels: LabelSets, batch: Example
) -> ScoresFunction:
    """Move the axis in which scores of the template and the parents differ as their labels do to that of channels."""
    shapes = [check_scores(scores, run_or_none(network, batch)).shape for network in networks]
    axis = label_axis(shapes, labels)
    return scores if axis is None or axis == 1 else ChannelsFirst(scores, axis)


def _is_given(network: nn.Module, example: Example) -> bool:
    """Tell whether a batch's output is what the network returns, or what its `call` makes of that."""
    if not isinstance(example, Called):
        return True
    returned: list[Any] = []
    handle = unwrap(network).register_forward_hook(lambda module, inputs, output: returned.append(output))
    try:
        output = run_or_none(network, example)
    finally:
        handle.remove()
    return any(own is output or _same(own, output) for own in returned)


def _same(one: Any, other: Any) -> bool:
    """Tell whether two structures hold the same tensors: what `call` makes may have the names that a network gives."""
    if tree_structure(one) != tree_structure(other):
        return False
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)) for a, b in pairs)


def _check_shapes(networks: Sequence[nn.Module], counted: Sequence[Counted], batch: Example) -> None:
    """Raise `RecipeError` where a tensor that counts has another shape in another parent."""
    tensors = [tensors_of(counted, run_or_none(network, batch)) for network in networks]
    for number, found in enumerate(tensors[1:], start=2):
        for own, tensor, first in zip(counted, found or (), tensors[0] or (), strict=False):
            if (shape := tuple(tensor.shape[1:])) != (expected := tuple(first.shape[1:])):
                raise RecipeError(
                    f"{own.name} has shape {shape} in parent {number}, and {expected} in parent 1: where they know"
                    " different labels, say by `labels` which each of them knows"
                )


def _counted(network: nn.Module, batch: Example, *, named: bool) -> Sequence[Counted]:
    """Find the tensors that count in what a network returns for several images, as far as there are any."""
    return find_counted(run_or_none(network, batch), count_of(batch, 0), named=named)
