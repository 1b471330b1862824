"""ResNet20, 32, 44 and 56: the thin residual networks for CIFAR (He et al. 2015, section 4.2).

Option A subsamples the shortcut and pads it with zero channels on both sides, so channel i of one
stage is channel i + (width - width_in) // 2 of the next. Option B projects with a 1 x 1 convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.models.widths import scaled


class PadShortcut(nn.Module):
    """Subsample by two in space, and pad the channels with zeros on both sides."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.before = (width - width_in) // 2
        self.after = width - width_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class ThinBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut of option A or B."""

    def __init__(self, width_in: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module
        if stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PadShortcut(width_in, width)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ThinResNet(nn.Module):
    """Three stages of residual blocks, 16 to 64 channels times `width`, and a linear head."""

    def __init__(self, blocks: int, shortcut: str, classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut {shortcut!r} is neither 'A' nor 'B'")
        widths = [scaled(channels, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], 1, blocks, shortcut)
        self.layer2 = self._stage(widths[0], widths[1], 2, blocks, shortcut)
        self.layer3 = self._stage(widths[1], widths[2], 2, blocks, shortcut)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(width_in: int, width: int, stride: int, blocks: int, shortcut: str) -> nn.Sequential:
        first = ThinBlock(width_in, width, stride, shortcut)
        return nn.Sequential(first, *(ThinBlock(width, width, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def cifar_resnet20(classes: int = 10, shortcut: str = "A", width: float = 1.0, in_channels: int = 3) -> ThinResNet:
    """Build ResNet20 with shortcuts of option A or B; `width` scales every number of channels."""
    return ThinResNet(3, shortcut, classes, width, in_channels)


def cifar_resnet32(classes: int = 10, shortcut: str = "A", width: float = 1.0, in_channels: int = 3) -> ThinResNet:
    """Build ResNet32 with shortcuts of option A or B; `width` scales every number of channels."""
    return ThinResNet(5, shortcut, classes, width, in_channels)


def cifar_resnet44(classes: int = 10, shortcut: str = "A", width: float = 1.0, in_channels: int = 3) -> ThinResNet:
    """Build ResNet44 with shortcuts of option A or B; `width` scales every number of channels."""
    return ThinResNet(7, shortcut, classes, width, in_channels)


def cifar_resnet56(classes: int = 10, shortcut: str = "A", width: float = 1.0, in_channels: int = 3) -> ThinResNet:
    """Build ResNet56 with shortcuts of option A or B; `width` scales every number of channels."""
    return ThinResNet(9, shortcut, classes, width, in_channels)
