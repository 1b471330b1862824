"""VGG11 and VGG16 for 32 x 32 images (Simonyan & Zisserman 2014), with one linear layer as the head."""

from __future__ import annotations

from torch import Tensor, nn

from depfuse.models.widths import scaled

# Convolutions per stage; each stage ends in a 2 x 2 max pooling.
_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
_CHANNELS = (64, 128, 256, 512, 512)  # per stage


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions, 64 to 512 channels times `width`, and a linear head."""

    def __init__(self, depth: int, batch_norm: bool, classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = in_channels
        for convolutions, channels in zip(_STAGES[depth], _CHANNELS, strict=True):
            width_out = scaled(channels, width)
            for _ in range(convolutions):
                layers.append(nn.Conv2d(width_in, width_out, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width_out))
                layers.append(nn.ReLU())
                width_in = width_out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torch's default dies out in sixteen layers without BatchNorm
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) with H and W at least 32 to logits (N, classes)."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def vgg11(classes: int = 10, batch_norm: bool = True, width: float = 1.0, in_channels: int = 3) -> VGG:
    """Build VGG11 for small images, with or without BatchNorm; `width` scales every number of channels."""
    return VGG(11, batch_norm, classes, width, in_channels)


def vgg16(classes: int = 10, batch_norm: bool = True, width: float = 1.0, in_channels: int = 3) -> VGG:
    """Build VGG16 for small images, with or without BatchNorm; `width` scales every number of channels."""
    return VGG(16, batch_norm, classes, width, in_channels)
