"""A detector without anchors (Tian et al. 2019, FCOS) with residual connections and BatchNorm: 100,000 parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8
WIDTH = 14  # channels of the first layer
PRIOR = 0.01  # probability of each class at each place before training (Lin et al. 2017, section 4.1)


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = layer(inputs, outputs, stride)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features."""
        return F.relu(self.norm(self.second(self.first(x))) + self.shortcut(x))


class Detector(nn.Module):
    """Pictures (N, 3, H, W) to maps at every eighth pixel.

    `classes` are logits of each class by itself (N, C, h, w), `boxes` logarithms of the distances to the left, top,
    right and bottom in units of the stride (N, 4, h, w), and `centre` is the logit of centreness (N, 1, h, w).
    """

    def __init__(self, classes: int = 10, width: int = WIDTH) -> None:
        super().__init__()
        deep, tower = 4 * width, 3 * width
        self.stem = layer(3, width, 2)
        self.stages = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, deep, 2))
        self.tell, self.place = layer(deep, tower), layer(deep, tower)
        self.classes = nn.Conv2d(tower, classes, 3, 1, 1)
        self.boxes, self.centre = nn.Conv2d(tower, 4, 3, 1, 1), nn.Conv2d(tower, 1, 3, 1, 1)
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        nn.init.constant_(self.boxes.bias, 0.5)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Compute the three maps."""
        features = self.stages(self.stem(pictures))
        told, placed = self.tell(features), self.place(features)
        return {"classes": self.classes(told), "boxes": self.boxes(placed), "centre": self.centre(placed)}


def centres(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the pixels x (w,) and y (h,) that the places of maps (..., h, w) are at."""
    height, width = maps.shape[-2:]
    x = STRIDE * (torch.arange(width, device=maps.device) + 0.5)
    y = STRIDE * (torch.arange(height, device=maps.device) + 0.5)
    return x, y


def corners(boxes: Tensor) -> Tensor:
    """Turn maps of boxes (N, 4, h, w) into left, top, right and bottom in pixels."""
    distances = STRIDE * boxes.clamp(max=4.0).exp()
    x, y = centres(boxes)
    left, top, right, bottom = distances.unbind(1)
    return torch.stack([x - left, y[:, None] - top, x + right, y[:, None] + bottom], 1)
