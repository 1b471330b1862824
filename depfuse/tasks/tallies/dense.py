"""Mean intersection over union, Dice and accuracy of maps of class scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.tasks.label_kinds import IGNORED, fitted_places
from depfuse.tasks.scores import DICE, IOU, PIXEL_ACCURACY, Scores
from depfuse.tasks.tallies.tally import joined, of_ratio, value_of


class DenseTally:
    """Sums over batches of maps (N, C, ...) of class scores under labels (N, ...).

    Places of label -100 do not count, nor do those of label 255 where there are fewer classes.

    The value is the mean over the classes of intersection over union, each over all images together.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._above: list[Tensor] = []
        self._below: list[Tensor] = []
        self._labels: Tensor | int = 0
        self._loss = 0.0
        self._places = 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch."""
        classes = outputs.shape[1]
        labels = fitted_places(labels, outputs)
        predicted = outputs.float().nan_to_num(0).argmax(1)
        for metric in self._of(classes, outputs.device).values():
            metric.update(predicted, labels)
        counted = labels != IGNORED
        number = torch.arange(len(labels), device=labels.device).reshape(-1, *[1] * (labels.dim() - 1))
        places = (number * classes + labels)[counted], (number * classes + predicted)[counted]
        right = places[0][places[0] == places[1]]
        both, first, second = (
            torch.bincount(found, minlength=len(labels) * classes).reshape(len(labels), classes)
            for found in (right, *places)
        )
        self._above.append(both.cpu())
        self._below.append((first + second - both).cpu())
        self._labels = self._labels + first.sum(0).cpu()
        self._loss += float(F.cross_entropy(outputs.float(), labels, ignore_index=IGNORED, reduction="sum"))
        self._places += int(counted.sum())

    def scores(self) -> Scores:
        """Compute mean IoU, Dice and the share of places that are right."""
        contributions = of_ratio(joined(self._above), joined(self._below))
        assert isinstance(self._labels, Tensor)
        there = max(1, int((self._labels > 0).sum()))
        return Scores(
            value=value_of(self._metrics["IoU"]),
            loss=self._loss / max(1, self._places),
            count=len(contributions),
            measure=IOU,
            further={DICE: value_of(self._metrics["Dice"]), PIXEL_ACCURACY: value_of(self._metrics["accuracy"])},
            trivial=int(self._labels.max()) / max(1, self._places) / there,
            of_images=contributions,
        )

    def _of(self, classes: int, device: torch.device) -> dict[str, Any]:
        if not self._metrics:
            from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

            options: dict[str, Any] = {"num_classes": classes, "ignore_index": IGNORED, "validate_args": False}
            self._metrics = {
                "IoU": MulticlassJaccardIndex(average="macro", **options).to(device),
                "Dice": MulticlassF1Score(average="macro", **options).to(device),  # of counts, the same as Dice
                "accuracy": MulticlassAccuracy(average="micro", **options).to(device),
            }
        return self._metrics
