"""Accuracy, cross-entropy and calibration error of one row of class scores for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from depfuse.errors import DataError
from depfuse.tasks.label_kinds import check_extremes, fitted_classes
from depfuse.tasks.scores import CALIBRATION, Scores

BINS = 15  # of the calibration error


class ClassesTally:
    """Sums over batches of what the scores are made of, kept on the device until the end."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Tensor | None = None
        self._extremes: Tensor | None = None
        self._outputs = 0
        self._correct: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch: logits (N, classes), labels (N,)."""
        labels = fitted_classes(labels, logits)
        self._outputs = logits.shape[1]
        log_probabilities = logits.float().log_softmax(dim=1)
        # A label without an output would read past the end; it is refused once the pass is over, because
        # looking at it here would make the host wait for the device in every batch.
        readable = labels.clamp(0, self._outputs - 1).unsqueeze(1)
        losses = -log_probabilities.gather(1, readable).squeeze(1).double()
        confidences = log_probabilities.max(dim=1).values.exp().double()
        right = logits.argmax(dim=1) == labels
        self._correct.append(right)
        self._labels.append(labels)
        correct = right.double()
        bins = ((confidences * BINS).ceil() - 1).clamp(0, BINS - 1).nan_to_num(0).long()
        sums = torch.zeros(2 * BINS + 2, dtype=torch.float64, device=logits.device)
        sums[:BINS].index_add_(0, bins, confidences)
        sums[BINS : 2 * BINS].index_add_(0, bins, correct)
        sums[-2] = losses.sum()
        sums[-1] = correct.sum()
        extremes = torch.stack([-labels.min(), labels.max()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)
        self._count += len(labels)

    def scores(self) -> Scores:
        """Fetch the sums and divide."""
        if self._sums is None or self._extremes is None:
            raise DataError("there is no image to evaluate on")
        check_extremes(-int(self._extremes[0]), int(self._extremes[1]), self._outputs)
        sums = self._sums.cpu()
        gaps = (sums[:BINS] - sums[BINS : 2 * BINS]).abs().sum()
        return Scores(
            value=float(sums[-1]) / self._count,
            loss=float(sums[-2]) / self._count,
            count=self._count,
            further={CALIBRATION: float(gaps) / self._count},
            trivial=int(torch.bincount(torch.cat(self._labels)).max()) / self._count,
            of_images=torch.cat(self._correct).cpu(),
        )
