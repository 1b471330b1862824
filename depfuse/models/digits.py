"""The small residual network for scikit-learn's 8 x 8 digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.models.resnet import BasicBlock
from depfuse.models.widths import scaled


class DigitsResNet(nn.Module):
    """Two stages of one residual block each, 16 and 32 channels times `width`, and a linear head."""

    def __init__(self, classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        narrow, wide = scaled(16, width), scaled(32, width)
        self.conv1 = nn.Conv2d(in_channels, narrow, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.layer1 = BasicBlock(narrow, narrow, 1)
        self.layer2 = BasicBlock(narrow, wide, 2)
        self.linear = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def digits_resnet(classes: int = 10, width: float = 1.0, in_channels: int = 1) -> DigitsResNet:
    """Build a residual network of 20,000 parameters; `width` scales every number of channels."""
    return DigitsResNet(classes, width, in_channels)
