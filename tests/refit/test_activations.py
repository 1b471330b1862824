"""A refit before any activation leaves what two copies in other orders compute alike as it is."""

from __future__ import annotations

import pytest
import torch

from depfuse import fuse
from tests.activations import ACTIVATIONS, Network, permuted


@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_refitted_child_of_copies_in_other_orders_is_the_network(name: str) -> None:
    torch.manual_seed(0)
    network = Network(ACTIVATIONS[name])
    images = torch.rand(200, 1, 8, 8)
    with torch.no_grad():
        network.train()(images)  # statistics of these images
    network.eval()
    copies = [network, permuted(network, images[:1], 1)]
    result = fuse(copies, {"preset": "standard", "refit": {"name": "ridge"}}, images)
    with torch.no_grad():
        torch.testing.assert_close(result.child(images), network(images), rtol=1e-3, atol=1e-3)
    effect = next(step for step in result.steps if step.stage == "refit")
    assert effect.after == pytest.approx(effect.before, abs=1e-4)  # whether it was kept or not
    assert effect.alike_after == effect.images
