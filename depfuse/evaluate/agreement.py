"""Compare networks with an ensemble on images without labels, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError
from depfuse.evaluate.evaluation import Batches, combine_outputs
from depfuse.evaluate.scores import Agreement
from depfuse.evaluate.together import Together
from depfuse.networks.isolation import undisturbed
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.scores import PSNR, R2, RMSE
from depfuse.tasks.tallies.regression import range_of_pictures
from depfuse.tasks.task import Task


@undisturbed()
def evaluate_agreement(
    members: Sequence[nn.Module],
    others: Sequence[nn.Module],
    batches: Batches,
    weights: Sequence[float] | None = None,
    sets: LabelSets | None = None,
    task: Task = CLASSES,
) -> tuple[list[Agreement], Agreement, list[Agreement]]:
    """Compare networks with their ensemble and with its members; no label is read.

    Class scores agree where their class is the same, labels and the places of maps by the share that is; other outputs
    are scored by the task with those that they are compared with as targets. The ensemble is that of `combine_outputs`.

    Parameters
    ----------
    members
        The networks of the ensemble.
    others
        Networks to compare with it, with its outputs.
    batches
        Images on the networks' device; labels are left aside.
    weights
        One share per member; equal ones where None.
    sets
        Which labels the members' outputs stand for, where they differ.
    task
        What outputs mean.

    Returns
    -------
    list of Agreement, Agreement, list of Agreement
        Of the members, the ensemble and the others.

    Raises
    ------
    DataError
        There is no image, the images do not fit the networks, or outputs are not of the task or of one shape.
    """
    shares = list(weights) if weights is not None else [1.0 / len(members)] * len(members)
    kind = _Classes if task.name == CLASSES.name else _Predictions if task.predicts else _Numbers
    tallies: list[_Classes | _Predictions | _Numbers] = [
        kind(task, len(members)) for _ in range(len(members) + 1 + len(others))
    ]
    together = Together([*members, *others], task)
    with torch.inference_mode():
        for inputs, _ in batches:
            outputs = [output.float() for output in together(inputs)]
            own, rest = outputs[: len(members)], outputs[len(members) :]
            ensemble = combine_outputs(own, shares, sets, task)
            own = own if sets is None else sets.of_outputs(own)
            if any(found.shape != ensemble.shape for found in rest):
                raise DataError("a network has other outputs than the ensemble it is compared with")
            for tally, found in zip(tallies, [*own, ensemble, *rest], strict=True):
                tally.add(found, ensemble, own)
    agreements = [tally.agreement() for tally in tallies]
    return agreements[: len(members)], agreements[len(members)], agreements[len(members) + 1 :]


OVERSHOOT = 0.1  # of the range of pictures, which networks go beyond at edges
MOST_DECIBELS = 100.0  # of pictures that are the same but for rounding: JSON knows no infinity


def _decibels(error: float, width: float) -> float:
    """Compute the peak signal-to-noise ratio of a root mean square error, in dB."""
    return min(MOST_DECIBELS, 20 * math.log10(width / error)) if error > 0 else MOST_DECIBELS


class _Classes:
    """Sums over batches of what class scores agree on, kept on the device until the end."""

    def __init__(self, task: Task, members: int) -> None:
        self._count = 0
        self._sums: Tensor | None = None

    def add(self, logits: Tensor, ensemble: Tensor, members: Sequence[Tensor]) -> None:
        """Take in one batch: logits (N, C), the ensemble's and each member's."""
        probabilities, wanted = logits.softmax(1), ensemble.softmax(1)
        classes = probabilities.argmax(1)
        # What the ensemble gives no probability is not counted, even where a member excludes it.
        logs = torch.where(wanted > 0, probabilities.log(), 0.0)
        predicted = [own.softmax(1).argmax(1) for own in members]
        same = [(classes == other).double().sum() for other in (wanted.argmax(1), *predicted)]
        sums = torch.stack([*same, probabilities.amax(1).double().sum(), -(wanted * logs).double().sum()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(logits)

    def agreement(self) -> Agreement:
        """Fetch the sums and divide."""
        if self._sums is None:
            raise DataError("there is no image to evaluate on")
        ensemble, *members, confidence, disagreement = (self._sums.cpu() / self._count).tolist()
        return Agreement(ensemble, tuple(members), confidence, disagreement, self._count)


class _Predictions:
    """Sums over batches of the share of labels, or of places, that are predicted alike."""

    def __init__(self, task: Task, members: int) -> None:
        self._task, self._count = task, 0
        self._alike = torch.zeros(members + 1, dtype=torch.float64)
        self._loss = 0.0

    def add(self, outputs: Tensor, ensemble: Tensor, members: Sequence[Tensor]) -> None:
        """Take in one batch: outputs (N, ...), the ensemble's and each member's."""
        targets = [self._task.predictions(other) for other in (ensemble, *members)]
        alike = [self._task.agreements(outputs, target).double() for target in targets]
        self._alike += torch.stack(alike).cpu()
        self._loss += float(self._task.losses(outputs, targets[0]).double().sum())
        self._count += len(outputs)

    def agreement(self) -> Agreement:
        """Divide by the number of images."""
        if not self._count:
            raise DataError("there is no image to evaluate on")
        ensemble, *members = (self._alike / self._count).tolist()
        return Agreement(ensemble, tuple(members), math.nan, self._loss / self._count, self._count)


class _Numbers:
    """Scores over batches of outputs that predict no classes, with others' outputs as targets."""

    def __init__(self, task: Task, members: int) -> None:
        self._task, self._count, self._loss = task, 0, 0.0
        self._tallies = [task.tally() for _ in range(members + 1)]
        self._range: float | None = None  # of pictures

    def add(self, outputs: Tensor, ensemble: Tensor, members: Sequence[Tensor]) -> None:
        """Take in one batch: outputs (N, ...), the ensemble's and each member's."""
        if not self._count and self._task.name == "regression":
            self._range = range_of_pictures(ensemble, OVERSHOOT)
        for tally, target in zip(self._tallies, (ensemble, *members), strict=True):
            tally.add(outputs, self._task.predictions(target))
        self._loss += float(self._task.losses(outputs, self._task.predictions(ensemble)).double().sum())
        self._count += len(outputs)

    def agreement(self) -> Agreement:
        """Score the sums."""
        scores = [tally.scores() for tally in self._tallies]
        if self._range is None:
            measure = R2 if R2 in scores[0].further else scores[0].measure
            ensemble, *members = [found.by(measure) for found in scores]
        else:
            measure = PSNR
            ensemble, *members = [_decibels(found.by(RMSE), self._range) for found in scores]
        return Agreement(ensemble, tuple(members), math.nan, self._loss / self._count, self._count, measure)
