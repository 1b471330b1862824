"""Scores of outputs by torchmetrics, and what predictors have that look at no input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import (
    accuracy,
    auroc,
    average_precision,
    mean_squared_error,
    pearson_corrcoef,
    r2_score,
)
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.segmentation import dice_score, mean_iou
from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision


@dataclass(frozen=True)
class Score:
    """A score of outputs (N, ...) for their targets.

    Attributes
    ----------
    name
        With its unit.
    of
        (outputs, targets) -> score.
    digits
        Decimals that are shown.
    """

    name: str
    of: Callable[[Tensor, Tensor], float]
    digits: int = 1


def _accuracy(outputs: Tensor, target: Tensor) -> float:
    return 100 * float(accuracy(outputs, target, "multiclass", num_classes=outputs.shape[1], average="micro"))


def _top2(outputs: Tensor, target: Tensor) -> float:
    return 100 * float(accuracy(outputs, target, "multiclass", num_classes=outputs.shape[1], average="micro", top_k=2))


def _of_labels(metric: Callable[..., Any]) -> Callable[[Tensor, Tensor], float]:
    """A metric of labels in per cent: of one, or the mean over several."""

    def score(outputs: Tensor, target: Tensor) -> float:
        if outputs.shape[1] == 1:
            return 100 * float(metric(outputs.sigmoid()[:, 0], target[:, 0].long(), "binary"))
        return 100 * float(metric(outputs.sigmoid(), target.long(), "multilabel", num_labels=outputs.shape[1]))

    return score


def _iou(outputs: Tensor, target: Tensor) -> float:
    return 100 * _over_all(mean_iou, outputs, target)


def _dice(outputs: Tensor, target: Tensor) -> float:
    return 100 * _over_all(dice_score, outputs, target)


def _over_all(metric: Callable[..., Any], outputs: Tensor, target: Tensor) -> float:
    """Mean over classes of a metric, all pixels taken as those of one image: a class need not be in every one."""
    predicted, classes = outputs.argmax(1).reshape(1, -1), outputs.shape[1]
    found = metric(predicted, target.reshape(1, -1), num_classes=classes, input_format="index")
    return float(found.mean())


def _r2(outputs: Tensor, target: Tensor) -> float:
    return float(r2_score(outputs.squeeze(1), target.squeeze(1)))


def _correlation(outputs: Tensor, target: Tensor) -> float:
    return float(pearson_corrcoef(outputs.squeeze(1), target.squeeze(1)).mean())


def _squared(outputs: Tensor, target: Tensor) -> float:
    return float(mean_squared_error(outputs.contiguous(), target.contiguous()))


def _psnr(outputs: Tensor, target: Tensor) -> float:
    return float(peak_signal_noise_ratio(outputs, target, data_range=1.0))


def _ssim(outputs: Tensor, target: Tensor) -> float:
    return float(structural_similarity_index_measure(outputs, target, data_range=1.0))


def _retrieval(metric: Callable[[], Any]) -> Callable[[Tensor, Tensor], float]:
    """A metric in per cent of looking up every image among the others, by the cosine; relevant are those alike."""

    def score(outputs: Tensor, target: Tensor) -> float:
        found = F.normalize(outputs, dim=1)
        others = ~torch.eye(len(found), dtype=torch.bool)
        queries = torch.arange(len(found))[:, None].expand_as(others)
        alike = target[:, None] == target
        return 100 * float(metric()((found @ found.T)[others], alike[others], indexes=queries[others]))

    return score


ACCURACY, TOP2 = Score("accuracy, %", _accuracy), Score("right among two, %", _top2)
LABEL_ACCURACY, AUROC = Score("accuracy, %", _of_labels(accuracy)), Score("AUROC, %", _of_labels(auroc))
PRECISION = Score("average precision, %", _of_labels(average_precision))
IOU, DICE = Score("mean IoU, %", _iou), Score("Dice, %", _dice)
R2, CORRELATION = Score("R2", _r2, 3), Score("correlation", _correlation, 3)
MSE, PSNR, SSIM = Score("MSE", _squared, 4), Score("PSNR, dB", _psnr, 2), Score("SSIM", _ssim, 3)
AT_10 = Score("precision at 10, %", _retrieval(lambda: RetrievalPrecision(top_k=10)))
MAP = Score("mean average precision, %", _retrieval(RetrievalMAP))


# --- predictors that look at no input, or at nothing but the input ----------------------------------------------------


def most_frequent(inputs: Any, target: Tensor, trained: Tensor) -> Tensor:
    """Scores of the most frequent class, for an image or for a pixel."""
    classes = int(trained.max()) + 1
    frequent = F.one_hot(trained.flatten().bincount(minlength=classes).argmax(), classes).float()
    return frequent.reshape(1, classes, *[1] * (target.dim() - 1)).expand(len(target), classes, *target.shape[1:])


def mean_target(inputs: Any, target: Tensor, trained: Tensor) -> Tensor:
    """The mean of the training targets."""
    return trained.mean(0, keepdim=True).expand_as(target)


def mean_logits(inputs: Any, target: Tensor, trained: Tensor) -> Tensor:
    """The logits of the labels' frequencies."""
    return trained.mean(0, keepdim=True).expand_as(target).logit(1e-6)


def interpolated(inputs: Tensor, target: Tensor, trained: Tensor) -> Tensor:
    """The images enlarged by cubic interpolation."""
    return F.interpolate(inputs, size=target.shape[2:], mode="bicubic", align_corners=False)


def random_directions(inputs: Any, target: Tensor, trained: Tensor) -> Tensor:
    """Embeddings that depend on nothing."""
    return torch.randn(len(target), 16, generator=torch.Generator().manual_seed(0))
