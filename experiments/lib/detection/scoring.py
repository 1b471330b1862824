"""Detections of maps, and their mean average precision."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from experiments.lib.detection.network import corners
from experiments.lib.detection.scenes import Scene

LEAST, MOST, OVERLAP = 0.05, 50, 0.5  # of a score, of detections in a picture, and of two boxes of one class


@dataclass(frozen=True)
class Detections:
    """Boxes (n, 4) in pixels of one picture, their scores (n,) and labels (n,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """Put the detections of several networks side by side, without those that overlap with a better one."""
        boxes, scores, labels = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels")
        )
        kept = batched_nms(boxes, scores, labels, OVERLAP)[:MOST]
        return cls(boxes[kept], scores[kept], labels[kept])


def detect(network: nn.Module, pictures: Tensor, labels: Sequence[int]) -> list[Detections]:
    """Run a detector on pictures; `labels` are what its classes stand for."""
    found = []
    with torch.inference_mode():
        for part in pictures.split(100):
            found += decoded(network(part), labels)
    return found


def decoded(output: Mapping[str, Tensor], labels: Sequence[int]) -> list[Detections]:
    """Turn maps into detections, a picture each: scores are the roots of class probability times centreness."""
    scores = (output["classes"].sigmoid() * output["centre"].sigmoid()).sqrt()
    names = torch.tensor(list(labels))
    found = []
    for own, boxes in zip(scores, corners(output["boxes"]), strict=True):
        classes, rows, columns = (own > LEAST).nonzero(as_tuple=True)
        part = Detections(boxes[:, rows, columns].T, own[classes, rows, columns], names[classes])
        found.append(Detections.joined([part]))
    return found


def precision(found: Sequence[Detections], scenes: Sequence[Scene], labels: Sequence[int]) -> tuple[float, float]:
    """Compute the mean average precision over classes, of overlaps of 0.5 to 0.95 and of 0.5; needs pycocotools."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(class_metrics=False)
    wanted = torch.tensor(list(labels))

    def of(part: Detections | Scene) -> dict[str, Tensor]:
        kept = torch.isin(part.labels, wanted)
        own = {"boxes": part.boxes[kept], "labels": part.labels[kept]}
        return {**own, "scores": part.scores[kept]} if isinstance(part, Detections) else own

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update([of(part) for part in found], [of(scene) for scene in scenes])
        scores = metric.compute()
    return float(scores["map"]), float(scores["map_50"])
