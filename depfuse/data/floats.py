"""Conversion of images from bytes to the floats that networks take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.data.preprocessing import Preprocessing, box_of_shape


def to_floats(images: Tensor, preprocessing: Preprocessing, *, channels_last: bool = False) -> Tensor:
    """Map images (N, C, H, W) uint8 to float32 (N, C, H', W') on the same device."""
    preprocessing.check_channels(images.shape[1])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    floats = images.to(torch.float32, memory_format=layout)
    if preprocessing.size is not None and tuple(floats.shape[-2:]) != preprocessing.size:
        top, left, height, width = box_of_shape(floats.shape[-2], floats.shape[-1], preprocessing.size)
        floats = floats[..., top : top + height, left : left + width]
        floats = F.interpolate(floats, preprocessing.size, mode="bilinear", antialias=True, align_corners=False)
        floats = floats.contiguous(memory_format=layout)
    # One pass over the images: x / 255 scaled and shifted is a single multiply-add per channel.
    mean = torch.tensor(preprocessing.mean or (0.0,), dtype=torch.float64)
    std = torch.tensor(preprocessing.std or (1.0,), dtype=torch.float64)
    scale = (1 / (255 * std)).float().to(images.device).view(-1, 1, 1)
    shift = (-mean / std).float().to(images.device).view(-1, 1, 1)
    return torch.addcmul(shift, floats, scale, out=floats)
