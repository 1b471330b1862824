"""Buffers of the network's own that a forward pass computes with, or writes to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

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
