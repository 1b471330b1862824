"""Scores of plain numbers: R2 and RMSE, and for pictures PSNR and SSIM."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from depfuse.tasks.label_kinds import fitted_numbers
from depfuse.tasks.scores import PSNR, R2, RMSE, SSIM, Measure, Scores
from depfuse.tasks.tallies.tally import finite, joined, value_of

COLOURS = (1, 3)  # channels of pictures
WINDOW = 11  # pixels that SSIM needs


class RegressionTally:
    """Sums over batches of numbers (N,), (N, C) or (N, C, ...) under targets of the same shape.

    The value is the coefficient of determination R2, the mean over the channels that vary, from sums in float64 about
    the first batch's mean (sums of squares in float32, as torchmetrics keeps them, lose targets far from zero). Of
    pictures, (N, 1 or 3, H, W) with targets in [0, 1], [-1, 1] or [0, 255], it is the peak signal-to-noise ratio over
    all images, in dB.
    """

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._sums: Tensor | None = None
        self._about: Tensor | None = None
        self._range: float | None = None
        self._pictures: dict[Measure, Any] = {}
        self._loss = 0.0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch."""
        rows = outputs if outputs.dim() > 1 else outputs.unsqueeze(1)
        targets, given = fitted_numbers(labels, outputs).reshape(rows.shape), finite(rows)
        flat = targets.flatten(2) if targets.dim() > 2 else targets.unsqueeze(2)  # (N, C, places)
        if self._about is None:
            self._about = flat.double().mean((0, 2)).cpu()
            self._range = range_of_pictures(targets)
            self._pictures = _measures(targets, self._range)
        for metric in self._pictures.values():
            metric.update(given, targets)
        self._errors.append((given.reshape(flat.shape).double() - flat.double()).square().mean(2).cpu())
        self._loss += float((rows.float() - targets).square().flatten(1).mean(1).sum())
        away = flat.double() - self._about.to(flat.device)[:, None]
        sums = torch.stack([away.mean(2).sum(0), away.square().mean(2).sum(0)]).cpu()
        self._sums = sums if self._sums is None else self._sums + sums

    def scores(self) -> Scores:
        """Compute R2 and RMSE; of pictures PSNR and SSIM, too."""
        errors = joined(self._errors)  # (N, C), the mean over places
        count = len(errors)
        assert self._sums is not None
        first, second = self._sums / count
        variance = second - first.square()
        kept = variance > 0
        explained = 1 - errors[:, kept] / variance[kept] if bool(kept.any()) else torch.zeros_like(errors[:, :1])
        loss, of_images = self._loss / count, explained.double().mean(1)
        further = {RMSE: math.sqrt(float(errors.mean()))}
        determination = float(of_images.mean())
        if self._range is None:
            return Scores(determination, loss, count, R2, further, 0.0, of_images)
        further |= {R2: determination}
        further |= {SSIM: value_of(self._pictures[SSIM])} if SSIM in self._pictures else {}
        value, error = value_of(self._pictures[PSNR]), errors.mean(1)
        trivial = 10 * math.log10(self._range**2 / max(float(variance.mean()), 1e-12))
        # The first order of the logarithm of their mean, so that images contribute to the ratio itself.
        of_images = value - 10 / math.log(10) * (error / error.mean() - 1) if float(error.mean()) > 0 else error + value
        return Scores(value, loss, count, PSNR, further, trivial, of_images)


def range_of_pictures(targets: Tensor, overshoot: float = 0.0) -> float | None:
    """Return the width of the range that pictures are in; None of what are no pictures, or of another range.

    Parameters
    ----------
    targets
        (N, C, H, W).
    overshoot
        Part of the width by which values may be outside, as those that networks give are.
    """
    if targets.dim() != 4 or targets.shape[1] not in COLOURS or targets.shape[2:].numel() == 1:
        return None
    lowest, highest = float(targets.min()), float(targets.max())
    for least, most in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        beyond = overshoot * (most - least)
        if lowest >= least - beyond and highest <= most + beyond:
            return most - least
    return None


def _measures(targets: Tensor, width: float | None) -> dict[Measure, Any]:
    if width is None:
        return {}
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    found: dict[Measure, Any] = {PSNR: PeakSignalNoiseRatio(data_range=width)}
    if min(targets.shape[2:]) >= WINDOW:
        found[SSIM] = StructuralSimilarityIndexMeasure(data_range=width)
    return {measure: metric.to(targets.device) for measure, metric in found.items()}
