"""What detectors of different labels return: which tensors are class scores, and what is beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.data.stream import Stream
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import RecipeError
from depfuse.fusion.seen import MAPS, Seen, count_of, run_or_none
from depfuse.networks.forward import Example
from depfuse.tasks.classes import Dense
from depfuse.tasks.detection import Detection
from depfuse.tasks.evidence import are_probabilities
from depfuse.tasks.labels import Labels
from depfuse.tasks.regression import Regression
from depfuse.tasks.selection import AUXILIARY_WEIGHT, Counted, Packed, ScoresFunction, counted_of, find_counted, select
from depfuse.tasks.task import Task
from depfuse.tasks.weighted import WeightedPart, pack

ASKED = ("auto", "weighted", "detection")  # tasks with which several tensors count


@dataclass(frozen=True, eq=False)
class Detector:
    """What detectors return.

    Attributes
    ----------
    classes
        Gives the class scores (N, C, ...), the first of several.
    packed
        Gives all tensors that count, in a row.
    task
        What these mean, of all labels.
    because
        That, in a sentence.
    """

    classes: ScoresFunction
    packed: ScoresFunction
    task: Detection
    because: str


def detector_of(
    networks: Sequence[nn.Module],
    template: nn.Module,
    asked: str,
    labels: LabelSets,
    background: int | None,
    images: Loader | Stream | None,
    few: Example,
    *,
    made: bool = False,
) -> Detector | None:
    """Find out whether networks are detectors; they and the template return the tensors that count, in a row, then.

    Class scores are tensors with places whose sizes differ as the numbers of labels do; what has the same places is
    beside them, and all else counts by itself.

    Parameters
    ----------
    networks
        The parents' copies.
    template
        A network with an output for each label.
    asked
        The recipe's task.
    labels, background
        The parents' label sets, and the label of background in all of them, where scores are of a softmax with it.
    images, few
        Images to run them on, and the first of them.
    made
        Whether a function of the user's makes what they return.

    Raises
    ------
    RecipeError
        The recipe asks for a detector, and these are none; or background is not a label of every parent.
    """
    if asked not in ASKED:
        return None
    if background is not None and any(background not in own for own in labels.sets):
        raise RecipeError(f"`background` is {background}, which must be a label of each parent: name it among `labels`")
    outputs = [run_or_none(network, few) for network in (template, *networks)]
    counted = find_counted(outputs[1], count_of(few, 0), named=asked != "detection")
    tensors = [tensors_of(counted, output) for output in outputs]
    if any(own is None for own in tensors) or not counted:
        _refuse(asked)
        return None
    shapes = [[own.shape for own in each] for each in zip(*(own for own in tensors if own is not None), strict=True)]
    axes = [label_axis(own, labels) for own in shapes]
    if all(axis is None for axis in axes):
        _refuse(asked)
        return None
    common = next(axis for axis in axes if axis is not None)
    counted = tuple(
        replace(own, axis=axis or (common if len(of[0]) > common else 1), weight=level_weight(own))
        for own, axis, of in zip(counted, axes, shapes, strict=True)
    )
    for own, axis, of in zip(counted, axes, shapes, strict=True):
        if axis is None and any(shape != of[0] for shape in of):
            raise RecipeError(
                f"{own.name} has shapes {', '.join(str(tuple(shape)) for shape in of)} in the template and the"
                " parents, which do not differ as the numbers of labels do"
            )
    places = {
        places_of(of[0], own.axis): number
        for number, (own, axis, of) in reversed(list(enumerate(zip(counted, axes, shapes, strict=True))))
        if axis is not None and len(of[0]) > 2
    }
    beside = [
        None if axis is not None else places.get(places_of(of[0], own.axis))
        for own, axis, of in zip(counted, axes, shapes, strict=True)
    ]
    if all(place is None for place in beside):
        _refuse(asked)
        return None
    packed = counted_of(Packed(counted), made=made)
    select([template, *networks], packed)
    seen = Seen(networks, images, few).first(MAPS).outputs
    channels_first = [
        [_channels_first(shape, own.axis) for shape in of] for own, of in zip(counted, shapes, strict=True)
    ]
    are_classes = [axis is not None for axis in axes]
    parts, joined = _parts(seen, counted, channels_first, are_classes, labels, background)
    column = None if background is None else labels.joint.index(background)
    known = [[place for place in labels.columns(number).tolist() if place != column] for number in range(len(networks))]
    task = Detection(parts, beside, known, column).in_units_of(joined)
    first = next(number for number, axis in enumerate(axes) if axis is not None)
    said = [
        f"{own.name}, {'classes' if axis is not None else 'numbers beside them' if place is not None else 'numbers'}"
        for own, axis, place in zip(counted, axes, beside, strict=True)
    ]
    kind = "each class a logit of its own" if background is None else f"a softmax with background {background}"
    because = f"the networks are taken for detectors, {kind}: {'; '.join(said)}; {counted[first].name} is scored"
    return Detector(counted_of(counted[first], made=made), packed, task, because)


def _refuse(asked: str) -> None:
    """Raise `RecipeError` where the recipe asks for a detector."""
    if asked == "detection":
        raise RecipeError(
            "`task=detection` is of networks that return class scores at each place with boxes beside them, each"
            " parent's own labels: let them return a dictionary of these tensors, of the template as well"
        )


def check_maps(output: Any) -> None:
    """Raise `RecipeError` where networks return what they found in each image, as torchvision's detectors do."""
    several = isinstance(output, (list, tuple)) and len(output) > 0
    if several and all(isinstance(own, Mapping) and "boxes" in own for own in output):
        raise RecipeError(
            "the networks return what they found, boxes after a threshold, of which two networks have no two alike: let"
            " them return the maps before it, class scores and boxes at each place, or run them up to these by `call`"
        )


def check_logits(name: str, tensors: Sequence[Tensor], otherwise: str = "") -> None:
    """Raise `RecipeError` where class scores are probabilities: nowhere would be nothing."""
    if are_probabilities(tensors):
        raise RecipeError(
            f"the class scores {name} all lie between 0 and 1, as what a sigmoid or softmax gives, and detectors are"
            f" fused by logits: let the networks return these, or undo the sigmoid in `call` (torch.logit){otherwise}"
        )


def tensors_of(counted: Sequence[Counted], output: Any) -> list[Tensor] | None:
    """Take the tensors that count; None where an output has another structure."""
    try:
        return [own(output) for own in counted]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None


def label_axis(shapes: Sequence[torch.Size], labels: LabelSets) -> int | None:
    """Find the axis of the labels from a tensor's shapes in the template and the parents; None of other tensors."""
    counts = [len(labels.joint), *map(len, labels.sets)]
    for axis in range(1, len(shapes[0])):
        rest = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
        if len(rest) == 1 and [shape[axis] for shape in shapes] == counts:
            return axis
    return None


def _channels_first(shape: torch.Size, axis: int) -> torch.Size:
    return torch.Size((shape[axis], *places_of(shape, axis))) if len(shape) > 1 else torch.Size(())


def places_of(shape: torch.Size, axis: int) -> tuple[int, ...]:
    """List the places of a tensor (N, ...): all axes but images and channels."""
    return tuple(size for number, size in enumerate(shape) if number not in (0, axis))


def level_weight(own: Counted) -> float:
    """Weigh an auxiliary output less, and levels of detectors alike."""
    return own.weight if own.weight == AUXILIARY_WEIGHT else 1.0


def _parts(
    outputs: Sequence[Tensor],
    counted: Sequence[Counted],
    shapes: Sequence[Sequence[torch.Size]],
    classes: Sequence[bool],
    labels: LabelSets,
    background: int | None,
) -> tuple[list[WeightedPart], Tensor]:
    """Describe the tensors, each of a task of its own, and put the parents' packed outputs side by side.

    Parameters
    ----------
    outputs
        (N, M) of each parent, in its own sizes.
    shapes
        Of each tensor, those for one image in the template and the parents, channels first.
    """
    shares = [1 / len(outputs)] * len(outputs)
    rows = [
        torch.split(own, [of[number].numel() for of in shapes], 1) for number, own in enumerate(outputs, start=1)
    ]  # fmt: skip
    parts, joined = [], []
    for place, (own, of, is_classes) in enumerate(zip(counted, shapes, classes, strict=True)):
        tensors = [parent[place].reshape(-1, *of[number]) for number, parent in enumerate(rows, start=1)]
        if is_classes:
            check_logits(own.name, tensors)
            task: Task = Labels() if background is None else Dense()
            if background is not None:
                columns = [labels_of.index(background) for labels_of in labels.sets]
                tensors = [scores - scores[:, [column]] for scores, column in zip(tensors, columns, strict=True)]
            joined.append(labels.join(tensors, shares, 1))
        else:
            task = Regression.of(tensors)
            joined.append(torch.stack(tensors).mean(0))
        parts.append(WeightedPart(own.name, task, of[0], own.weight))
    return parts, pack(joined)
