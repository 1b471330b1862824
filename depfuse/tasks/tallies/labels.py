"""Scores of independent yes-or-no logits: accuracy, area under the ROC curve, average precision, IoU of maps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.tasks.label_kinds import fitted_answers
from depfuse.tasks.scores import ACCURACY, AUROC, DICE, IOU, PRECISION, Measure, Scores
from depfuse.tasks.tallies.tally import finite, joined, of_ratio


class LabelsTally:
    """Sums over batches of logits (N,), (N, L) or maps (N, L, ...) under labels of 0 and 1.

    The value is the accuracy of one logit for each image; of several labels the mean of their areas under the ROC
    curve; of maps the mean over the labels of intersection over union.
    """

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._loss = 0.0
        self._images = 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch."""
        rows = outputs.reshape(len(outputs), 1) if outputs.dim() == 1 else outputs
        wanted = fitted_answers(labels, outputs).reshape(rows.shape)
        self._loss += float(F.binary_cross_entropy_with_logits(rows.float(), wanted, reduction="sum"))
        self._loss_places = max(1, rows.shape[2:].numel())
        self._images += len(rows)
        logits = finite(rows)
        if rows.dim() == 2:
            self._logits.append(logits.cpu())
            self._labels.append(wanted.long().cpu())
            return
        yes, true = logits.flatten(2) > 0, wanted.flatten(2) > 0
        counts = [
            (yes & true).sum(2),
            (yes | true).sum(2),
            yes.sum(2),
            true.sum(2),
            torch.full_like(yes.sum(2), true.shape[2]),
        ]
        self._counts.append(torch.stack(counts, 2).cpu())

    def scores(self) -> Scores:
        """Compute the scores of rows or of maps."""
        loss = self._loss / max(1, self._images)
        if self._counts:
            return self._of_maps(loss / self._loss_places)
        logits, labels = joined(self._logits), joined(self._labels)
        further = {AUROC: self._by("AUROC", logits, labels), PRECISION: self._by("AveragePrecision", logits, labels)}
        share = labels.double().mean(0)
        if logits.shape[1] == 1:
            right = (logits > 0)[:, 0] == (labels > 0)[:, 0]
            value, trivial, measure = float(right.double().mean()), float(torch.maximum(share, 1 - share)), ACCURACY
            return Scores(value, loss, len(right), measure, further, trivial, right)
        right = ((logits > 0) == (labels > 0)).double().mean(1)
        value = further.pop(AUROC)
        known: dict[Measure, float] = {**further, ACCURACY: float(right.mean())}
        return Scores(value, loss, len(logits), AUROC, known, 0.5, _of_areas(logits, labels))

    def _of_maps(self, loss: float) -> Scores:
        counts = joined(self._counts).double()
        both, either, _, true, places = counts.unbind(2)
        contributions = of_ratio(both, either)
        total = counts.sum(0)
        kept = (total[:, 2] + total[:, 3]) > 0
        dice = float((2 * total[kept, 0] / (total[kept, 2] + total[kept, 3])).mean()) if bool(kept.any()) else 0.0
        trivial = float((true.sum(0) / places.sum(0)).mean())
        value = float(contributions.mean())
        return Scores(value, loss, len(counts), IOU, {DICE: dice}, trivial, contributions)

    @staticmethod
    def _by(name: str, logits: Tensor, labels: Tensor) -> float:
        """Compute the mean over the labels that are not the same for all images, by torchmetrics.

        It is given ranks: the sigmoids that it takes of logits may differ by rounding where these are equal.
        """
        from torchmetrics import classification

        there = (labels.min(0).values < labels.max(0).values).nonzero()[:, 0].tolist()
        metric = getattr(classification, f"Binary{name}")()
        values = [float(metric(_ranks(logits[:, number]), labels[:, number])) for number in there]
        return sum(values) / len(values) if values else 0.0


def _ranks(scores: Tensor) -> Tensor:
    """Map scores (N,) to [0, 1] in their order; equal ones stay equal."""
    places = torch.from_numpy(np.unique(scores.numpy(), return_inverse=True)[1])
    return places.double() / max(1, int(places.max()))


def _of_areas(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute what each image (N,) contributes to the mean area under the ROC curve of the labels.

    With the share V of the images of the other kind that are on the right side of an image, it is N (V - area) / n more
    than the area, for the n images of its kind: their variance is DeLong's (DeLong et al. 1988, Biometrics 44).
    """
    contributions = []
    for scores, own in zip(logits.double().unbind(1), labels.bool().unbind(1), strict=True):
        positive, negative = scores[own], scores[~own]
        if not len(positive) or not len(negative):
            continue
        above = _share_below(positive, negative)
        below = 1 - _share_below(negative, positive)
        area = float(above.mean())
        of_images = torch.empty_like(scores)
        of_images[own] = area + len(scores) * (above - area) / len(positive)
        of_images[~own] = area + len(scores) * (below - area) / len(negative)
        contributions.append(of_images)
    return torch.stack(contributions).mean(0) if contributions else torch.zeros(len(logits), dtype=torch.float64)


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    """Compute the share of others that are below each score; those equal to it count half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, scores, right=False) + torch.searchsorted(ordered, scores, right=True)
    return below.double() / (2 * len(others))
