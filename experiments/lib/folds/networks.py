"""A small U-Net as the segmentation frameworks build them: pairs of convolutions, deep supervision, any dimension."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["instance", "batch"]
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {"instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}, "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}}


class UNet(nn.Module):
    """Two steps down and two up, with a head at each step up: (N, C, ...) to maps of class scores.

    In training it returns a list, the maps of full size first; in evaluation these alone.
    """

    def __init__(self, channels: int, classes: int, dimensions: int, norm: Norm, width: int = 6) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width)
        inputs = (channels, *widths)
        convolution, transposed = CONVOLUTIONS[dimensions], TRANSPOSED[dimensions]

        def pair(taken: int, given: int, stride: int = 1) -> nn.Sequential:
            layers: list[nn.Module] = []
            for number in range(2):
                layers += [
                    convolution(given if number else taken, given, 3, 1 if number else stride, 1),
                    NORMS[norm][dimensions](given, affine=True),
                    nn.LeakyReLU(0.01),
                ]
            return nn.Sequential(*layers)

        self.encoder = nn.ModuleList(pair(inputs[step], widths[step], 2 if step else 1) for step in range(3))
        self.up = nn.ModuleList(transposed(widths[step + 1], widths[step], 2, 2) for step in (1, 0))
        self.decoder = nn.ModuleList(pair(2 * widths[step], widths[step]) for step in (1, 0))
        self.heads = nn.ModuleList(convolution(widths[step], classes, 1) for step in (1, 0))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map images to maps of class scores, of each size in training."""
        skips = []
        for step in self.encoder:
            x = step(x)
            skips.append(x)
        maps = []
        for up, decoder, head, skip in zip(self.up, self.decoder, self.heads, skips[1::-1], strict=True):
            x = decoder(torch.cat([up(x), skip], 1))
            maps.append(head(x))
        return maps[::-1] if self.training else maps[-1]
