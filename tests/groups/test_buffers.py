"""Buffers of the network's own that a forward pass computes with, or writes to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depfuse import fuse
from depfuse.groups import find_groups, prove_groups


class Normalised(nn.Module):
    """A convolution and BatchNorm as a function, by statistics that are buffers of the network."""

    mean: Tensor
    variance: Tensor

    def __init__(self, *, always: bool = False, scaled: bool = True) -> None:
        super().__init__()
        self.conv, self.head, self.always = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), always
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("variance", torch.rand(8) + 0.5)
        self.scale = nn.Parameter(torch.rand(8) + 0.5) if scaled else None
        self.shift = nn.Parameter(torch.randn(8)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Map images to two numbers."""
        batch = self.training or self.always
        x = functional.batch_norm(self.conv(x), self.mean, self.variance, self.scale, self.shift, batch)
        result: Tensor = self.head(x.relu().mean((2, 3)))
        return result


class Counting(nn.Module):
    """A network that counts its calls, in evaluation mode as well."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to two numbers."""
        self.calls += 1
        result: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return result


@pytest.mark.parametrize("scaled", [True, False])
def test_statistics_of_a_functional_batch_norm_belong_to_its_channels(scaled: bool) -> None:
    network, images = Normalised(scaled=scaled).eval(), torch.rand(4, 3, 9, 9)
    groups = prove_groups(network, find_groups(network, images), images)
    (group,) = groups.free
    assert {"conv.weight", "mean", "variance"} <= {slot.key for slot in group.slots}


@pytest.mark.parametrize("make", [Counting, lambda: Normalised(always=True)])
def test_buffers_that_are_only_written_to_are_no_hindrance(make) -> None:
    network, images = make().eval(), torch.rand(4, 3, 9, 9)
    groups = prove_groups(network, find_groups(network, images), images)
    assert [group.size for group in groups.free] == [8]


class Blurring(nn.Module):
    """Downsampling behind a blur, whose filter the state dict has once for each channel (Zhang 2019)."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filters", (row[:, None] * row).repeat(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to two numbers."""
        x = functional.conv2d(self.norm(self.conv(x)).relu(), self.filters, stride=2, groups=8)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.mark.parametrize("recipe", ["fast", "standard", "git-re-basin"])
def test_one_filter_for_each_channel_goes_with_it_and_stays_what_it_is(recipe: str) -> None:
    torch.manual_seed(0)
    parents, images = [Blurring().eval(), Blurring().eval()], torch.rand(40, 3, 9, 9)
    result = fuse(parents, recipe, images)
    assert [group.size for group in result.groups.free] == [8]
    child = result.child
    assert isinstance(child, Blurring)
    assert torch.allclose(child.filters, parents[0].filters)
    assert not torch.allclose(child.conv.weight, parents[0].conv.weight)


class Edges(nn.Module):
    """Edge detectors that the state dict has, before layers that learn."""

    sobel: Tensor

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("sobel", torch.stack([kernel, kernel.T])[:, None])
        self.grey, self.conv, self.norm = nn.Conv2d(3, 1, 1), nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)
        self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to three numbers."""
        x = functional.conv2d(self.grey(x), self.sobel, padding=1)
        result: Tensor = self.head(self.last(self.norm(self.conv(x)).relu()).relu().mean((2, 3)))
        return result


@pytest.mark.parametrize("recipe", ["standard", "best"])
def test_filters_that_are_no_parameters_are_not_refitted(recipe: str) -> None:
    torch.manual_seed(0)
    parents = [Edges().eval(), Edges().eval()]
    child = fuse(parents, recipe, torch.rand(60, 3, 12, 12)).child
    assert isinstance(child, Edges)
    assert torch.equal(child.sobel, parents[0].sobel)
