r"""What detectors of the same classes return: class scores are told by being low nearly everywhere.

The smallest example is a map of two classes, of boxes and of centreness over the same places. Trained class scores say
"nothing here" at most places, so that the median of the largest probability of a place is small, about 0.02 of focal
losses, and some places have a large one. Boxes and centreness are not trained where there is nothing, and lie anywhere.
Their channels are along the axis in which such tensors differ: (N, C, h, w) beside (N, 4, h, w), or (N, P, C) beside
(N, P, 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.data.stream import Stream
from depfuse.errors import RecipeError
from depfuse.fusion.detectors import Detector, check_logits, level_weight, places_of
from depfuse.fusion.seen import MAPS, Seen, run_or_none
from depfuse.networks.forward import Example
from depfuse.tasks.classes import Dense
from depfuse.tasks.detection import Detection
from depfuse.tasks.evidence import are_probabilities
from depfuse.tasks.labels import Labels
from depfuse.tasks.regression import Regression
from depfuse.tasks.selection import Counted, Packed, counted_of, select, selected
from depfuse.tasks.task import Task
from depfuse.tasks.weighted import WeightedPart

RARE = 0.1  # most of the median over places of the largest probability; 0.02 to 0.05 of detectors, 0.2 of centreness
FOUND = 0.3  # least of that of all places
_LEAST = 1e-6  # of a probability, and of what it lacks of one
BOX = 4  # least numbers beside classes


@dataclass(frozen=True, eq=False)
class Level:
    """Tensors over the same places, by their numbers: one of class scores, and what is beside it."""

    classes: int
    beside: Sequence[int]


def same_class_detector_of(
    networks: Sequence[nn.Module],
    asked: str,
    counted: Sequence[Counted],
    background: int | None,
    images: Loader | Stream | None,
    example: Example,
    *,
    made: bool = False,
) -> Detector | None:
    """Find out whether networks are detectors of the same classes; they return what counts, in a row, then.

    Parameters
    ----------
    networks
        The parents' copies.
    asked
        The recipe's task; where it is left open, detectors must be recognised, where it is `detection` they are ones.
    counted
        The tensors of their outputs that count.
    background
        The column of background where scores are of a softmax with it; they are detectors then.
    images, example
        Images to run them on, or an input where there are none.
    made
        Whether a function of the user's makes what they return.

    Raises
    ------
    RecipeError
        They shall be detectors, and return no two tensors over the same places; or their class scores are
        probabilities.
    """
    named = asked == "detection" or background is not None
    if not named and asked != "auto":
        return None
    output = run_or_none(networks[0], example)
    shapes = [own(output).shape for own in counted]
    counted = [
        replace(own, axis=axis, weight=level_weight(own)) for own, axis in zip(counted, _axes(shapes), strict=True)
    ]
    levels: dict[tuple[int, ...], list[int]] = {}
    for number, (own, shape) in enumerate(zip(counted, shapes, strict=True)):
        if len(shape) > 2:
            levels.setdefault(places_of(shape, own.axis), []).append(number)
    together = [numbers for numbers in levels.values() if len(numbers) > 1]
    if not together:
        if named:
            raise RecipeError(
                "detectors return class scores at each place with boxes beside them, and of what these networks return"
                " no two tensors are over the same places: let them return a dictionary of these"
            )
        return None
    packed = counted_of(Packed(tuple(counted)), made=made)
    outputs = Seen(selected(networks, packed), images, example).first(MAPS).outputs
    tensors = _unpacked(outputs, [own(output).shape[1:] for own in counted])
    found = [_level(numbers, tensors, background) for numbers in together]
    alone = len(counted) > sum(map(len, together))
    if not named and not _recognised(found, tensors, alone=alone):
        bare = _undone(tensors)
        found = [_level(numbers, bare, None) for numbers in together]
        if _recognised(found, bare, alone=alone):
            for level in found:
                check_logits(counted[level.classes].name, tensors[level.classes], ", or name task weighted")
        return None
    for level in found:
        check_logits(counted[level.classes].name, tensors[level.classes])
    select(networks, packed)
    places: dict[int, int] = {number: level.classes for level in found for number in level.beside}
    classes = [level.classes for level in found]
    parts = []
    for number, own in enumerate(counted):
        task: Task = Regression.of(tensors[number])
        if number in classes:
            task = Labels() if background is None else Dense()
        parts.append(WeightedPart(own.name, task, tensors[number][0].shape[1:], own.weight))
    plain = Detection(parts, [places.get(number) for number in range(len(parts))], (), background)
    task_of_all = plain.in_units_of(plain.ensemble_target(outputs, [1 / len(outputs)] * len(outputs), 1.0))
    kind = "each class a logit of its own" if background is None else f"a softmax with background {background}"
    said = [
        f"{own.name}, {'classes' if number in classes else 'numbers beside them' if number in places else 'numbers'}"
        for number, own in enumerate(counted)
    ]
    main = counted[min(classes)]
    because = f"the networks are taken for detectors of the same classes, {kind}: {'; '.join(said)}; {main.name} is"
    return Detector(counted_of(main, made=made), packed, task_of_all, f"{because} scored")


def _axes(shapes: Sequence[torch.Size]) -> list[int]:
    """Find the axis of channels of tensors (N, ...): that in which some differ from others alone.

    Where that says nothing it is the first, or of (N, P, C) the shorter one: there are more places than channels.
    """
    axes = []
    for shape in shapes:
        found = {
            axis
            for other in shapes
            for axis in range(1, len(shape))
            if len(other) == len(shape) > 2
            and [number for number, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b] == [axis]
        }
        assumed = 2 if len(shape) == 3 and shape[2] < shape[1] else 1
        axes.append(found.pop() if len(found) == 1 else assumed)
    return axes


def _unpacked(outputs: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[list[Tensor]]:
    """Split rows (N, M) of each parent into tensors (N, ...), listed by tensor and then by parent."""
    sizes = [max(1, shape.numel()) for shape in shapes]
    rows = [torch.split(own, sizes, 1) for own in outputs]
    return [[own[number].reshape(-1, *shape) for own in rows] for number, shape in enumerate(shapes)]


def _undone(tensors: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Give the logits of tensors that are probabilities, and others as they are."""
    return [[value.logit(_LEAST) for value in own] if are_probabilities(own) else list(own) for own in tensors]


def _level(numbers: Sequence[int], tensors: Sequence[Sequence[Tensor]], background: int | None) -> Level:
    """Take as class scores what says least at most places."""
    able = [number for number in numbers if background is None or tensors[number][0].shape[1] > background]
    classes = min(able, key=lambda number: float(_confidences(tensors[number], background).median()), default=None)
    if classes is None:
        raise RecipeError(f"`background` is {background}, and no tensor has a channel of that number: name another")
    return Level(classes, [number for number in numbers if number != classes])


def _confidences(tensors: Sequence[Tensor], background: int | None) -> Tensor:
    """Compute the highest probability at each place that something is there, of all parents in a row."""
    scores = torch.cat(list(tensors)).flatten(2)
    if background is not None:
        return 1 - scores.softmax(1)[:, background].flatten()
    return scores.sigmoid().amax(1).flatten()


def _recognised(levels: Sequence[Level], tensors: Sequence[Sequence[Tensor]], *, alone: bool) -> bool:
    """Tell whether all tensors are of levels in which classes are rare, sometimes there, and beside a box at least."""
    confidences = [_confidences(tensors[level.classes], None) for level in levels]
    rare = all(float(own.median()) <= RARE for own in confidences)
    found = max(float(own.max()) for own in confidences) >= FOUND
    boxes = all(sum(tensors[number][0].shape[1] for number in level.beside) >= BOX for level in levels)
    return rare and found and boxes and not alone
