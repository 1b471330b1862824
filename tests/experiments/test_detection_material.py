"""Pictures with digits in boxes, what a detector is to say of them, and how that is scored."""

from __future__ import annotations

import pytest
import torch

from experiments.lib.detection.network import STRIDE, centres
from experiments.lib.detection.scenes import Material, draw
from experiments.lib.detection.scoring import Detections, decoded, precision
from experiments.lib.detection.training import targets


def material() -> Material:
    generator = torch.Generator().manual_seed(0)
    digits = torch.zeros(20, 28, 28)
    digits[:, 4:24, 6:22] = 1.0
    return Material(digits, torch.arange(20) % 10, torch.rand(5, 3, 32, 32, generator=generator))


def test_boxes_lie_in_the_picture_around_what_was_painted_and_apart() -> None:
    pictures, scenes = draw(material(), 12, (2, 3), seed=0)
    again, _ = draw(material(), 12, (2, 3), seed=0)
    assert torch.equal(pictures, again)
    for picture, scene in zip(pictures, scenes, strict=True):
        assert 1 <= len(scene.labels) <= 3
        assert set(scene.labels.tolist()) <= {2, 3}
        assert float(scene.boxes.min()) >= 0
        assert float(scene.boxes.max()) <= picture.shape[-1]
        for left, top, right, bottom in scene.boxes.int().tolist():
            middle = picture[:, (top + bottom) // 2, (left + right) // 2]
            assert float(middle.min()) >= 0.59


def test_maps_that_say_what_is_there_have_full_precision_and_others_none() -> None:
    pytest.importorskip("pycocotools", reason="mean average precision needs pycocotools")
    _, scenes = draw(material(), 6, range(10), seed=1)
    like = torch.empty(6, 10, 12, 12)
    classes, boxes, _ = targets(like, scenes, list(range(10)))
    x, y = centres(like)
    place = torch.stack([x.expand(12, 12), y[:, None].expand(12, 12)])
    distances = torch.cat([place - boxes[:, :2], boxes[:, 2:] - place], 1).nan_to_num(8.0).clamp_min(0.1)
    output = {
        "classes": 20 * classes - 10,
        "boxes": (distances / STRIDE).log(),
        "centre": torch.full((6, 1, 12, 12), 9.0),
    }
    found = decoded(output, range(10))
    seen = sorted({label for scene in scenes for label in scene.labels.tolist()})
    assert precision(found, scenes, seen)[0] > 0.95
    moved = [Detections(own.boxes + 40, own.scores, own.labels) for own in found]
    assert precision(moved, scenes, seen)[1] < 0.2
    joined = Detections.joined([found[0], found[0]])
    assert len(joined.boxes) == len(found[0].boxes)
