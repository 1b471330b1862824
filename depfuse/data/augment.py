"""Augment training images: changes are drawn on the host and applied on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depfuse.data.augmentation import Augmentation


def draw_changes(augmentation: Augmentation, count: int, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw changes for `count` images: (count, 5) int64 of flip, shifts (y, x) and cutout centre (y, x).

    Of volumes, whose `sizes` are depth, height and width, (count, 6): a shift in depth comes last. Drawn on the host,
    so that every device sees the same images for the same seed.
    """
    places, (height, width) = 2 * augmentation.translate + 1, sizes[-2:]
    bounds = (2, places, places, height, width, *[places] * (len(sizes) - 2))
    return torch.stack([torch.randint(bound, (count,), generator=generator) for bound in bounds], 1)


def change(augmentation: Augmentation, images: Tensor, drawn: Tensor) -> Tensor:
    """Apply drawn changes (N, 5) to images (N, C, H, W), or (N, 6) to volumes (N, C, D, H, W).

    A volume is mirrored left to right, shifted along all of its axes, and cut out through all of its slices.
    """
    if images.dim() == 5:
        slices = _shifted_in_depth(augmentation, images, drawn[:, 5])
        return change(augmentation, slices.flatten(1, 2), drawn[:, :5]).reshape(images.shape)
    height, width = images.shape[-2:]
    flips, down, right, centre_y, centre_x = drawn.to(images.device, non_blocking=True).unbind(1)
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    if augmentation.flip or augmentation.translate:
        mirrored = torch.where(flips[:, None] == 1, columns.flip(0), columns) if augmentation.flip else columns[None]
        pad = augmentation.translate
        if pad:
            images = F.pad(images, (pad, pad, pad, pad))
        # One gather does both; channels come last, which is also how the network likes them.
        number = torch.arange(len(images), device=images.device)[:, None, None]
        chosen_rows = (rows + down[:, None])[:, :, None]
        chosen_columns = (mirrored + right[:, None])[:, None, :]
        images = images.permute(0, 2, 3, 1)[number, chosen_rows, chosen_columns].permute(0, 3, 1, 2)
    if augmentation.cutout:
        half = augmentation.cutout // 2
        first_row, first_column = (centre_y - half)[:, None], (centre_x - half)[:, None]
        inside_rows = (rows >= first_row) & (rows < first_row + augmentation.cutout)
        inside_columns = (columns >= first_column) & (columns < first_column + augmentation.cutout)
        images = images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)
    return images


def _shifted_in_depth(augmentation: Augmentation, volumes: Tensor, drawn: Tensor) -> Tensor:
    """Shift volumes (N, C, D, H, W) along D; slices from outside are zero."""
    pad, depth = augmentation.translate, volumes.shape[2]
    padded = F.pad(volumes, (0, 0, 0, 0, pad, pad))
    slices = torch.arange(depth, device=volumes.device) + drawn.to(volumes.device, non_blocking=True)[:, None]
    number = torch.arange(len(volumes), device=volumes.device)[:, None]
    return padded.transpose(1, 2)[number, slices].transpose(1, 2)


def mix(images: Any, generator: torch.Generator) -> Any:
    """Mix each image (N, ...) with up to one half of another one, in their memory layout; what is no number stays.

    Networks were not trained on mixtures, so that two networks that agree on them agree on more than memorised
    images (function matching, Beyer et al. 2022, section 3.1; mixup, Zhang et al. 2018).
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return images
    share = 0.5 * torch.rand(len(images), generator=generator, dtype=torch.float32).to(images, non_blocking=True)
    share = share.reshape(-1, *[1] * (images.dim() - 1))
    other = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
    return images + share * (images[other] - images)
