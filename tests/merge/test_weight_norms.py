"""Weight norms: of a direction the length means nothing, and makes no parent count for more."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from depfuse.groups import ChannelGroups
from depfuse.merge import average

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def hooked(module: nn.Module, dim: int | None) -> nn.Module:
    """The older hook, which torch says is to be left behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, dim=dim)


def parent(seed: int, norm, dim: int | None) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(norm(nn.Conv2d(3, 6, 3), dim=dim), nn.ReLU(), norm(nn.Conv2d(6, 2, 3), dim=dim))
    return network.eval()


def merged(one: nn.Module, other: nn.Module, shares: tuple[float, float]) -> torch.Tensor:
    with torch.no_grad():
        return average([one, other], ChannelGroups(()), [{}, {}], shares)(X)


def directions(network: nn.Module) -> list[torch.Tensor]:
    return [tensor for key, tensor in network.state_dict().items() if key.endswith(("_v", "original1"))]


@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("norm", [hooked, nn.utils.parametrizations.weight_norm])
def test_a_longer_direction_counts_for_no_more(norm, dim):
    one, other = parent(0, norm, dim), parent(1, norm, dim)
    longer = parent(1, norm, dim)
    for direction in directions(longer):
        direction.mul_(30.0)
    torch.testing.assert_close(longer(X), other(X))
    found = merged(one, longer, (0.5, 0.5))
    torch.testing.assert_close(found, merged(one, other, (0.5, 0.5)))
    assert (found - other(X)).norm() > 0.1 * other(X).norm()  # nor is it this parent's alone
    torch.testing.assert_close(merged(other, longer, (0.5, 0.5)), other(X))
    torch.testing.assert_close(merged(one, longer, (0.0, 1.0)), other(X))
