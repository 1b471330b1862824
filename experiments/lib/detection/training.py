"""Train a detector on boxes, as FCOS does (Tian et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from experiments.lib.detection.network import STRIDE, WIDTH, Detector, centres, corners
from experiments.lib.detection.scenes import Scene

BATCH, RATE, DECAY = 32, 3e-3, 1e-4
RADIUS = 0.5  # half sides of a box around its centre whose places are its own


def targets(maps: Tensor, scenes: Sequence[Scene], classes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what maps (N, C, h, w) should say.

    Returns
    -------
    tuple of three tensors
        Classes (N, C, h, w), 0 or 1; boxes (N, 4, h, w) in pixels, NaN where there is none; and centreness (N, h, w).
    """
    x, y = centres(maps)
    wanted = torch.zeros(maps.shape)
    boxes = torch.full((len(maps), 4, *maps.shape[2:]), torch.nan)
    centreness = torch.zeros(len(maps), *maps.shape[2:])
    for number, scene in enumerate(scenes):
        for box, label in zip(scene.boxes, scene.labels.tolist(), strict=True):
            left, top, right, bottom = box.tolist()
            across, along = (x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs()
            inside = (along <= RADIUS * (bottom - top) / 2 + 2)[:, None] & (across <= RADIUS * (right - left) / 2 + 2)
            wanted[number, classes.index(label)][inside] = 1.0
            boxes[number][:, inside] = box[:, None]
            horizontal = torch.stack([x - left, right - x]).clamp_min(0.1)
            vertical = torch.stack([y - top, bottom - y]).clamp_min(0.1)
            across, along = horizontal.amin(0) / horizontal.amax(0), vertical.amin(0) / vertical.amax(0)
            centreness[number][inside] = (along[:, None] * across).sqrt()[inside]
    return wanted, boxes, centreness


def loss_of(output: Mapping[str, Tensor], wanted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the sum of focal, box and centreness losses, per place that has an object."""
    classes, boxes, centreness = wanted
    there = ~boxes[:, 0].isnan()
    count = there.sum().clamp_min(1)
    focal = sigmoid_focal_loss(output["classes"], classes, reduction="sum") / count
    found = corners(output["boxes"]).movedim(1, -1)[there]
    overlap = generalized_box_iou_loss(found, boxes.movedim(1, -1)[there], reduction="sum") / count
    centred = F.binary_cross_entropy_with_logits(output["centre"][:, 0][there], centreness[there])
    return focal + overlap + centred


def train(
    pictures: Tensor, scenes: Sequence[Scene], classes: Sequence[int], seed: int, epochs: int, width: int = WIDTH
) -> Detector:
    """Train a detector of some classes from a start of its own."""
    torch.manual_seed(seed)
    network = Detector(len(classes), width).train()
    like = torch.empty(1, len(classes), *(-(-size // STRIDE) for size in pictures.shape[2:]))
    wanted = [torch.cat(parts) for parts in zip(*(targets(like, [scene], classes) for scene in scenes), strict=True)]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = epochs * (len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures))[: len(pictures) // BATCH * BATCH].split(BATCH):
            loss = loss_of(network(pictures[chosen]), tuple(part[chosen] for part in wanted))  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()
