"""Samples, and outputs of parents, that are not finite: named before they spoil anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depfuse import fuse
from depfuse.data.batches import as_loader
from depfuse.errors import DataError


class Root(nn.Module):
    """Gives NaN for images below zero."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        features = self.norm(self.convolution(x)).relu().mean((2, 3))
        return self.head(features) * x.mean((1, 2, 3))[:, None].sqrt()


@pytest.fixture
def images():
    return torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_is_named_as_it_is_read(images, value):
    images[500, 0, 0, 0] = value
    with pytest.raises(DataError, match="sample 500 of the data holds NaN or infinite values"):
        as_loader(images, Root())


def test_minus_infinity_in_one_of_several_inputs_may_be_a_mask(images):
    class Masked(nn.Module):
        def forward(self, x, mask):
            return (x.flatten(1).mean(1, keepdim=True) + mask).softmax(1)

    mask = torch.zeros(600, 5)
    mask[:, 3] = -torch.inf
    assert as_loader((images, mask), Masked()).count == 600
    mask[7, 0] = torch.nan
    with pytest.raises(DataError, match="sample 7 "):
        as_loader((images, mask), Masked())


@pytest.mark.parametrize("preset", ["fast", "standard", {"align.criterion": "weights"}])
def test_nan_in_outputs_is_found_wherever_it_is(images, preset):
    """Also beyond the images by which it is told what outputs mean."""
    images[500] = -1
    with pytest.raises(DataError, match=r"parent 1 gives NaN for (calibration image 500|an image)"):
        fuse([Root().eval(), Root().eval()], preset, images)
