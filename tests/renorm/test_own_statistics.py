"""Running statistics that a module gives to `torch.batch_norm` itself: merged, and said not to be computed anew."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import fuse
from depfuse.errors import DepfuseWarning
from depfuse.renorm import untracked_statistics


class OwnNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def network(norm: type[nn.Module]) -> nn.Module:
    body = nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(8, 4)).eval()


def test_statistics_that_are_not_reset_are_said() -> None:
    assert untracked_statistics(network(OwnNorm)) == ["1.running_mean", "1.running_var"]
    assert untracked_statistics(network(nn.BatchNorm2d)) == []
    images = torch.rand(32, 3, 8, 8)
    with pytest.warns(DepfuseWarning, match=r"^1\.running_mean, 1\.running_var: running statistics that no BatchNorm"):
        fuse([network(OwnNorm), network(OwnNorm)], "fast", images)
    for norm, renorm in ((OwnNorm, "none"), (nn.BatchNorm2d, "auto")):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DepfuseWarning)
            fuse([network(norm), network(norm)], {"preset": "fast", "renorm": renorm}, images)
