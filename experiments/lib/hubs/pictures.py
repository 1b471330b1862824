"""Pictures of scikit-learn's digits, in one colour over fields of others."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SIDE = 32
MEAN, STD = 0.5, 0.25  # of every channel, by which networks are given pictures


def pictures(part: slice, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw digits (N, 3, SIDE, SIDE) between 0 and 1, and return their labels (N,)."""
    digits = load_digits()
    ink = torch.tensor(digits.images[part]).float()[:, None] / 16
    ink = functional.interpolate(ink, SIDE, mode="bicubic").clamp(0, 1)
    fields = functional.interpolate(torch.rand(len(ink), 3, 3, 3, generator=generator), SIDE, mode="bicubic") / 2
    colours = 0.75 + torch.rand(len(ink), 3, 1, 1, generator=generator) / 4
    return ((1 - ink) * fields + ink * colours).clamp(0, 1), torch.tensor(digits.target[part]).long()
