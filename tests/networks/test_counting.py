"""Multiply-adds are those that torch's own counter finds, and neither it nor its compiler is imported for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from depfuse.networks.counting import multiply_adds


class Products(nn.Module):
    """A network of matrix products alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.plain = nn.Linear(12, 7), nn.Linear(7, 5, bias=False)
        self.bilinear = nn.Bilinear(5, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(self.layer(x.flatten(2)))
        return torch.einsum("nij,nik->njk", y, self.bilinear(y, y)) + torch.baddbmm(y[:, :1, :1], y.mT, y[..., :3])


NETWORKS = {
    "convolutions": nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, 2, groups=2)
    ),
    "products": Products(),
    "recurrent": nn.Sequential(nn.Flatten(2), nn.GRU(12, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_count_is_that_of_torch(name: str) -> None:
    network, image = NETWORKS[name].eval(), torch.randn(1, 4, 3, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    assert multiply_adds(network, image) == counter.get_total_flops() // 2 > 0


def test_compiled_networks_and_those_that_compile_are_counted() -> None:
    network, image = nn.Conv2d(4, 8, 3), torch.randn(1, 4, 5, 5)
    assert multiply_adds(torch.compile(network, backend="eager"), image) == multiply_adds(network, image) == 9 * 288
