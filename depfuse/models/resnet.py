"""ResNet18, 34 and 50 for 32 x 32 images (He et al. 2015, with a 3 x 3 stem without pooling)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.models.widths import scaled


def _shortcut(width_in: int, width_out: int, stride: int) -> nn.Module:
    if stride == 1 and width_in == width_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected where the shape changes."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1 ones, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        width_out = width * self.expansion
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.shortcut = _shortcut(width_in, width_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of residual blocks, 64 to 512 channels times `width`, and a linear head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        classes: int,
        width: float,
        in_channels: int,
    ) -> None:
        super().__init__()
        stem = scaled(64, width)
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self._width_in = stem
        self.layer1 = self._stage(block, scaled(64, width), blocks[0], 1)
        self.layer2 = self._stage(block, scaled(128, width), blocks[1], 2)
        self.layer3 = self._stage(block, scaled(256, width), blocks[2], 2)
        self.layer4 = self._stage(block, scaled(512, width), blocks[3], 2)
        self.linear = nn.Linear(self._width_in, classes)

    def _stage(self, block: type[BasicBlock] | type[Bottleneck], width: int, blocks: int, stride: int) -> nn.Sequential:
        layers = []
        for index in range(blocks):
            layers.append(block(self._width_in, width, stride if index == 0 else 1))
            self._width_in = width * block.expansion
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def cifar_resnet18(classes: int = 10, width: float = 1.0, in_channels: int = 3) -> ResNet:
    """Build ResNet18 for small images; `width` scales every number of channels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, width, in_channels)


def cifar_resnet34(classes: int = 10, width: float = 1.0, in_channels: int = 3) -> ResNet:
    """Build ResNet34 for small images; `width` scales every number of channels."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, width, in_channels)


def cifar_resnet50(classes: int = 10, width: float = 1.0, in_channels: int = 3) -> ResNet:
    """Build ResNet50 for small images; `width` scales every number of channels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, width, in_channels)
